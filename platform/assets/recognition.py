"""Which family the weights are of, and whether that is the declared kind and something this version renders."""

from __future__ import annotations

from assets.models import AssetKind
from assets.scanning import UnsafeFileError
from gpuworker.contract.families import RENDERABLE_CONTROL, Recognition, recognise

RENDERABLE_FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner")
"""Checkpoint families that this version's engine renders."""
RENDERABLE_CHANNELS = (4, 8, 9)
"""Input channels of a denoiser that draws from text, edits pictures, or paints into them."""
FAMILY_OF_KIND = {
    AssetKind.VAE: "vae",
    AssetKind.LORA: "lora",
    AssetKind.EMBEDDING: "embedding",
    AssetKind.CONTROLNET: "controlnet",
    AssetKind.UPSCALER: "upscaler",
    AssetKind.HYPERNETWORK: "hypernetwork",
}


def family_of(kind: str, shapes: dict[str, tuple[int, ...]]) -> str:
    """The family of a file's weights.

    Raises:
        UnsafeFileError: They are not of the kind that was declared, or this version cannot render them.
    """
    found = recognise(shapes)
    if found.family is None:
        raise UnsafeFileError(f"The weights are not recognised. {found.reason}")
    if kind == AssetKind.CHECKPOINT:
        return _checkpoint_family(found, found.family)
    if found.family != FAMILY_OF_KIND[AssetKind(kind)]:
        raise UnsafeFileError(f"The file holds weights of kind {found.family}, not {kind}.")
    if found.make and found.make not in RENDERABLE_CONTROL:
        raise UnsafeFileError(
            f"A control network of the sort {found.make} is recognised, but this version uses ControlNets only."
        )
    return found.family


def _checkpoint_family(found: Recognition, family: str) -> str:
    if not found.is_checkpoint:
        raise UnsafeFileError(f"The file holds weights of kind {family}, not a checkpoint.")
    if family not in RENDERABLE_FAMILIES:
        accepted = ", ".join(RENDERABLE_FAMILIES)
        raise UnsafeFileError(f"Family {family} is recognised, but this version renders {accepted} checkpoints only.")
    if found.missing:
        shown = ", ".join(found.missing[:3])
        raise UnsafeFileError(f"The file looks like {family} but lacks {len(found.missing)} tensors: {shown}.")
    if found.input_channels not in RENDERABLE_CHANNELS:
        accepted = ", ".join(map(str, RENDERABLE_CHANNELS))
        raise UnsafeFileError(
            f"The checkpoint takes {found.input_channels} input channels; this version renders those that take {accepted}."
        )
    return family
