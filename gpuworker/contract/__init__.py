"""What the web side and the GPU side say to each other: frozen dataclasses, standard library only.

``recipe``: the resolved parameters of one image; ``settings``: the options that take part in it. ``spec``: what the engine gets for
one pass. ``outcome``: what it gives back. ``samplers``, ``families``: names as data. Nothing here may import Django, torch or
anything of ours outside this package.
"""

from gpuworker.contract.outcome import Attachment, Failed, ImageOutcome, Picture, Rendered, Stopped
from gpuworker.contract.recipe import (
    AnyRecipe,
    ControlUnit,
    DetectRecipe,
    EmbeddingUse,
    ExtrasRecipe,
    Hires,
    Img2Img,
    Inpaint,
    InputPicture,
    NetworkUse,
    Recipe,
    Reconstruction,
    Refiner,
    SafetyCheck,
    SoftInpainting,
    Texts,
    Weights,
)
from gpuworker.contract.settings import SETTINGS, Settings
from gpuworker.contract.spec import RenderSpec, WeightsFile

__all__ = [
    "SETTINGS",
    "AnyRecipe",
    "Attachment",
    "ControlUnit",
    "DetectRecipe",
    "EmbeddingUse",
    "ExtrasRecipe",
    "Failed",
    "Hires",
    "ImageOutcome",
    "Img2Img",
    "Inpaint",
    "InputPicture",
    "NetworkUse",
    "Picture",
    "Recipe",
    "Reconstruction",
    "Refiner",
    "RenderSpec",
    "Rendered",
    "SafetyCheck",
    "Settings",
    "SoftInpainting",
    "Stopped",
    "Texts",
    "Weights",
    "WeightsFile",
]
