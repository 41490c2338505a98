"""The diffusers renderer. Pure: a spec and local files in, pictures out; no Django, no Celery, no storage, no network.

This is the public surface; nothing outside the package imports deeper, but for ``errors``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpuworker.engine.errors import CheckpointError, EngineError, InvalidSpecError, OutOfMemoryError

if TYPE_CHECKING:
    from gpuworker.engine.engine import DiffusersRenderer

__all__ = ["CheckpointError", "DiffusersRenderer", "EngineError", "InvalidSpecError", "OutOfMemoryError"]


def __getattr__(name: str) -> Any:
    """Load torch with the renderer, not with the errors: the worker's parent process must not touch the card (H12)."""
    if name == "DiffusersRenderer":
        from gpuworker.engine.engine import DiffusersRenderer

        return DiffusersRenderer
    raise AttributeError(name)
