"""What can go wrong in the engine, as one tree: a stable ``code``, and whether trying again can help.

No other module of the engine defines an error that leaves it.
"""

from __future__ import annotations

from typing import Any


class EngineError(Exception):
    """A pass that could not be rendered; translated once, by the caller of the engine."""

    code = "engine_error"
    retryable = False


class CheckpointError(EngineError):
    """The file is not a checkpoint this engine can render with."""

    code = "checkpoint_unusable"

    def __init__(self, message: str, *, family: str | None = None, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.family = family
        """What the file looks like, as ``gpuworker.contract.families`` names it."""
        self.missing = missing
        """Tensors it lacks."""


class ControlNetworkError(EngineError):
    """A ControlNet cannot act on the checkpoint it is wanted for."""

    code = "control_unusable"


class UpscalerError(EngineError):
    """The file is not an upscaler this engine knows."""

    code = "upscaler_unusable"


class InvalidPictureError(EngineError):
    """A picture the caller sent cannot be read or used."""

    code = "invalid_picture"


class ComponentMissingError(EngineError):
    """The request needs an optional part that this installation does not have."""

    code = "component_missing"


class OutOfMemoryError(EngineError):
    """The pass did not fit into memory; fewer images may."""

    code = "out_of_memory"
    retryable = True


class InvalidSpecError(EngineError):
    """The spec asks for something no engine can do, whoever tries."""

    code = "invalid_spec"

    def __init__(self, message: str, *, field: str, value: Any) -> None:
        super().__init__(message)
        self.field = field
        self.value = value
