"""The calls of `/controlnet`: lists of modules and networks, and maps made of pictures.

Source: sd-webui-controlnet 1.1.455, ``scripts/api.py``; what it lists is in ``gpuworker.contract.control_modules``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from accounts.authentication import Caller
from assets.models import AssetKind
from assets.selectors import newest_of
from gpuworker.contract.control_modules import (
    AVAILABLE,
    BY_NAME,
    CONTROL_TYPES,
    MODULES,
    NONE,
    NOT_DETECTED,
    modules_of_type,
    networks_of_type,
)
from renderjobs.choices import JobKind
from renderjobs.compat.sdapi.control_units import DEFAULT_UNITS
from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.compat.sdapi.translate import Translation

API_VERSION = 3
VERSION_IN_NAME = "11"
"""Of ControlNet 1.1, whose networks are the defaults of their types."""
GREY_MODES = ("1", "L", "I", "F", "P")


def version() -> dict[str, Any]:
    return {"version": API_VERSION}


def settings() -> dict[str, Any]:
    return {"control_net_unit_count": DEFAULT_UNITS}


def model_list(caller: Caller) -> dict[str, Any]:
    return {"model_list": networks(caller)}


def networks(caller: Caller) -> list[str]:
    """As A1111 shows them: the file's stem and the old hash."""
    return [f"{asset.name} [{asset.listed_hash}]" for asset in newest_of(caller, AssetKind.CONTROLNET)]


def module_list(*, labels: bool) -> dict[str, Any]:
    named = {module.shown_name if labels else module.name: module for module in MODULES}
    return {
        "module_list": list(named),
        "module_detail": {
            name: {"model_free": module.model_free, "sliders": [slider.to_json() for slider in module.shown_sliders]}
            for name, module in named.items()
        },
    }


def control_types(caller: Caller) -> dict[str, Any]:
    known = networks(caller)
    return {"control_types": {kind: control_type(kind, known) for kind in CONTROL_TYPES}}


def control_type(kind: str, known: list[str]) -> dict[str, Any]:
    modules = [module.shown_name for module in modules_of_type(kind)]
    fitting = networks_of_type(kind, known)
    newest = (name for name in fitting if VERSION_IN_NAME in name.split("[")[0])
    whole = kind == "All"
    return {
        "module_list": modules,
        "model_list": [NONE, *fitting],
        "default_option": modules[0] if whole or len(modules) == 1 else modules[1],
        "default_model": NONE if whole else next(newest, fitting[0] if fitting else NONE),
    }


def detect(values: Mapping[str, Any]) -> Translation:
    """The job of a call of ``detect``.

    Raises:
        HandlerError: The module is not here, or a picture or mask is missing or none.
    """
    name, texts, masks = (values[f"controlnet_{field}"] for field in ("module", "input_images", "masks"))
    texts = texts or values.get("controlnet_images", ())
    module = BY_NAME.get(name)
    if module is None:
        raise HandlerError(422, "Module not available")
    if name in NOT_DETECTED:
        raise HandlerError(422, "Module not supported")
    if not texts:
        raise HandlerError(422, "No image selected")
    if module.requires_mask and len(masks) != len(texts):
        raise HandlerError(422, f"Preprocessor {name} requires `controlnet_masks` param.")
    if module.name not in AVAILABLE:
        raise HandlerError(422, f"Module '{name}' needs weights that are not installed here.")
    numbers = (values[f"controlnet_{field}"] for field in ("processor_res", "threshold_a", "threshold_b"))
    resolution, threshold_a, threshold_b = module.values(*numbers)
    made = Translation({"kind": JobKind.DETECT}, {"detect.processor_res": "controlnet_processor_res"})
    made.canonical["detect"] = [
        {
            "picture": made.picture(text),
            "mask": mask_of(made, masks[index]) if module.requires_mask else None,
            "module": module.name,
            "processor_res": resolution,
            "threshold_a": threshold_a,
            "threshold_b": threshold_b,
        }
        for index, text in enumerate(texts)
    ]
    return made


def mask_of(made: Translation, text: str) -> Any:
    """QUIRK(sd-webui-controlnet 1.1.455): a mask in grey has no channels to take the first of."""
    picture = made.picture(text)
    with Image.open(io.BytesIO(made.uploads[-1].data)) as mask:
        if mask.mode in GREY_MODES:
            message = "too many indices for array: array is 2-dimensional, but 3 were indexed"
            raise HandlerError(500, message, error="IndexError")
    return picture
