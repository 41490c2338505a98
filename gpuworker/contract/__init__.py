"""What the web side and the GPU side say to each other: frozen dataclasses, standard library only.

``recipe``: the resolved parameters of one image. ``spec``: what the engine gets for one pass. ``outcome``: what it gives back.
Nothing here may import Django, torch or anything of ours outside this package.
"""

from gpuworker.contract.outcome import Failed, ImageOutcome, Rendered, Stopped
from gpuworker.contract.recipe import Recipe
from gpuworker.contract.spec import CheckpointFile, RenderSpec

__all__ = ["CheckpointFile", "Failed", "ImageOutcome", "Recipe", "RenderSpec", "Rendered", "Stopped"]
