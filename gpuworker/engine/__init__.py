"""The diffusers renderer. Pure: a spec and local files in, pictures out; no Django, no Celery, no storage, no network.

This is the public surface; nothing outside the package imports deeper, but for ``errors``.
"""

from gpuworker.engine.engine import DiffusersRenderer
from gpuworker.engine.errors import CheckpointError, EngineError, InvalidSpecError, OutOfMemoryError

__all__ = ["CheckpointError", "DiffusersRenderer", "EngineError", "InvalidSpecError", "OutOfMemoryError"]
