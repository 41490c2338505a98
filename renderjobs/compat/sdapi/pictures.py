"""Fields of extras and detect → the canonical request. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpuworker.contract.extras import CODEFORMER, FACES_MISSING, GFPGAN
from renderjobs.choices import JobKind
from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.compat.sdapi.translate import Translation

EXTRAS_FIELDS = (
    "resize_mode", "upscaling_resize", "upscaling_resize_w", "upscaling_resize_h", "upscaling_crop", "upscaler_1", "upscaler_2",
    "extras_upscaler_2_visibility", "gfpgan_visibility", "codeformer_visibility", "codeformer_weight",
)  # fmt: skip


def single_extras(values: Mapping[str, Any]) -> Translation:
    """Raises: HandlerError: The picture is none, or faces are to be restored."""
    return _extras(values, [values["image"] or ""])


def batch_extras(values: Mapping[str, Any]) -> Translation:
    """Raises: as ``single_extras``."""
    return _extras(values, [item["data"] for item in values["imageList"]])


def _extras(values: Mapping[str, Any], texts: list[str]) -> Translation:
    for name, field in ((GFPGAN, "gfpgan_visibility"), (CODEFORMER, "codeformer_visibility")):
        if values[field]:
            raise HandlerError(501, FACES_MISSING.format(name))
    made = Translation({"kind": JobKind.EXTRAS})
    pictures = [made.picture(text) for text in texts]
    made.canonical["extras"] = {"picture": pictures[0], **{name: values[name] for name in EXTRAS_FIELDS}}
    made.canonical["more_pictures"] = pictures[1:]
    made.names = {f"extras.{name}": name for name in EXTRAS_FIELDS}
    return made
