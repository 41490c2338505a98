"""Which family the weights are of, and whether that is the declared kind and something that can be rendered with."""

from __future__ import annotations

from assets.models import AssetKind
from assets.scanning import Header, UnsafeFileError
from gpuworker.contract.families import RENDERABLE_CONTROL, Recognition, recognise
from gpuworker.contract.layouts import Shapes
from gpuworker.contract.quantised import quantised_tensor

RENDERABLE_CHANNELS = (4, 8, 9, 16)
"""Input channels of a denoiser that draws from text, edits pictures, or paints into them; of Stable Diffusion 3 and Flux."""
NEVER_QUANTISED = (AssetKind.CHECKPOINT, AssetKind.VAE, AssetKind.CONTROLNET)
"""Kinds whose networks are filled with the file's numbers as they stand."""
FAMILY_OF_KIND = {
    AssetKind.VAE: "vae",
    AssetKind.LORA: "lora",
    AssetKind.EMBEDDING: "embedding",
    AssetKind.CONTROLNET: "controlnet",
    AssetKind.UPSCALER: "upscaler",
    AssetKind.HYPERNETWORK: "hypernetwork",
}


def recognised(kind: str, shapes: Shapes) -> Recognition:
    """What the weights of a file are.

    Raises:
        UnsafeFileError: They are not of the kind that was declared, or cannot be rendered with.
    """
    found = recognise(shapes)
    if found.family is None:
        raise UnsafeFileError(f"The weights are not recognised. {found.reason}")
    if kind == AssetKind.CHECKPOINT:
        _require_renderable(found)
    elif found.family != FAMILY_OF_KIND[AssetKind(kind)]:
        raise UnsafeFileError(f"The file holds weights of kind {found.family}, not {kind}.")
    if found.make and found.make not in RENDERABLE_CONTROL:
        raise UnsafeFileError(
            f"A control network of the sort {found.make} is recognised, but this version uses ControlNets only."
        )
    return found


def refuse_quantised(kind: str, header: Header) -> None:
    """Raises: UnsafeFileError: The weights are not the numbers they would be taken for."""
    found = quantised_tensor(header.shapes, header.types) if kind in NEVER_QUANTISED else None
    if found:
        raise UnsafeFileError(
            f"The weights are quantised, which this version cannot load: {found[:200]}. "
            "Files in fp32, fp16, bf16 and plain fp8 are accepted."
        )


def _require_renderable(found: Recognition) -> None:
    if not found.is_checkpoint:
        raise UnsafeFileError(f"The file holds weights of kind {found.family}, not a checkpoint.")
    if found.missing:
        raise UnsafeFileError(f"The checkpoint is incomplete. {found.reason}")
    if found.input_channels not in RENDERABLE_CHANNELS:
        accepted = ", ".join(map(str, RENDERABLE_CHANNELS))
        raise UnsafeFileError(
            f"The checkpoint takes {found.input_channels} input channels; {accepted} can be rendered with."
        )
