"""Units of the ControlNet extension as clients send them → units of the canonical request. Pure.

Source: ``ControlNetUnit`` of sd-webui-controlnet 1.1.455, ``internal_controlnet/args.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpuworker.contract.control_modules import AVAILABLE, BY_NAME, NONE, ControlModule
from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.compat.sdapi.wire import FALSE, TRUE

DEFAULT_UNITS = 3
OPTIONS = frozenset(
    {
        "control_net_unit_count", "control_net_no_detectmap", "control_net_detectmap_autosaving", "control_net_detectedmap_dir",
        "control_net_models_path", "control_net_modules_path", "control_net_model_cache_size", "control_net_sync_field_args",
        "control_net_allow_script_control", "control_net_inpaint_blur_sigma",
    }
)  # fmt: skip
"""The extension's own options, which a call may name; only ``NO_MAPS`` changes an answer here."""
NO_MAPS = "control_net_no_detectmap"
RESIZE_MODES = ("Just Resize", "Crop and Resize", "Resize and Fill")
RESIZE_ALIASES = {
    "Inner Fit (Scale to Fit)": "Crop and Resize", "Outer Fit (Shrink to Fit)": "Resize and Fill",
    "Scale to Fit (Inner Fit)": "Crop and Resize", "Envelope (Outer Fit)": "Resize and Fill",
}  # fmt: skip
CONTROL_MODES = ("Balanced", "My prompt is more important", "ControlNet is more important")
HIRES_OPTIONS = ("Both", "Low res only", "High res only")
ALIASES = {"guidance": "guidance_end", "lowvram": "low_vram", "input_image": "image", "mask_image": "mask"}
"""What the field was called before → its name."""
PICTURES = ("image", "mask", "effective_region_mask")
Picture = Callable[[str], Any]


def units_of(arguments: list[Any], picture: Picture, *, save_maps: bool, most: int) -> list[dict[str, Any]]:
    """The units that take part, as fields of ``ControlUnit``.

    Args:
        arguments: As sent; what is no object is passed over, and what is beyond ``most`` units is cut off.
        picture: Looks at a picture and keeps it.
        save_maps: Whether maps are handed back at all.
    Raises:
        HandlerError: In the extension's own words where it has some.
    """
    units = [unit for unit in arguments[:most] if isinstance(unit, Mapping) and is_enabled(unit)]
    return [_unit(unit, picture, save_maps) for unit in units]


def is_enabled(unit: Mapping[str, Any]) -> bool:
    """A unit that does not say so is: the extension's default was that before May 2024, and old clients rely on it."""
    return unit.get("enabled", True) not in FALSE


def _unit(sent: Mapping[str, Any], picture: Picture, save_maps: bool) -> dict[str, Any]:
    unit = _with_names(sent)
    module = _module(unit.get("module", "none"))
    start, end = _number(unit, "guidance_start", 0.0, 1.0), _number(unit, "guidance_end", 1.0, 1.0)
    if start > end:
        raise _invalid("__root__", f"guidance_start({start}) > guidance_end({end})")
    given = (_plain_number(unit, name) for name in ("processor_res", "threshold_a", "threshold_b"))
    resolution, threshold_a, threshold_b = module.values(*given)
    image, mask = _image_and_mask(unit)
    region = unit.get("effective_region_mask")
    return {
        "module": unit.get("module", "none"),
        "model": _model(unit.get("model")),
        "picture": picture(image) if image else None,
        "mask": picture(mask) if mask else None,
        "effective_region_mask": picture(region) if isinstance(region, str) and region else None,
        "weight": _number(unit, "weight", 1.0, 2.0),
        "resize_mode": _chosen(unit, "resize_mode", RESIZE_MODES, "Crop and Resize", RESIZE_ALIASES),
        "processor_res": resolution,
        "threshold_a": threshold_a,
        "threshold_b": threshold_b,
        "guidance_start": start,
        "guidance_end": end,
        "pixel_perfect": _flag(unit, "pixel_perfect", False),
        "control_mode": _control_mode(unit),
        "hr_option": _chosen(unit, "hr_option", HIRES_OPTIONS, "Both"),
        "inpaint_crop_input_image": _flag(unit, "inpaint_crop_input_image", True),
        "advanced_weighting": _weights(unit.get("advanced_weighting")),
        "save_detected_map": save_maps and _flag(unit, "save_detected_map", True),
    }


def _with_names(sent: Mapping[str, Any]) -> dict[str, Any]:
    unit = dict(sent)
    for old, name in ALIASES.items():
        if unit.get(old) is None:
            continue
        if unit.get(name) is not None:
            raise HandlerError(500, f"Conflict of field '{old}' and '{name}'", error="AssertionError")
        unit[name] = unit[old]
    return unit


def _module(name: Any) -> ControlModule:
    module = BY_NAME.get(name) if isinstance(name, str) else None
    if module is None:
        raise _invalid("module", f"module({name}) not found in supported modules.")
    if module.name not in AVAILABLE:
        message = f"Module '{name}' needs weights that are not installed here; send its map with module 'none'."
        raise HandlerError(422, message)
    return module


def _model(name: Any) -> str:
    if name is None:
        return NONE
    if not isinstance(name, str):
        raise _invalid("model", "str type expected", "type_error.str")
    return name


def _image_and_mask(unit: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """A text beside its mask, an object of both, or a list of both."""
    image: Any = unit.get("image")
    mask = unit.get("mask")
    if isinstance(image, list):
        if len(image) == 1 and isinstance(image[0], Mapping):
            image = image[0]
        elif len(image) == 2:
            image = {"image": image[0], "mask": image[1]}
        else:
            raise HandlerError(422, "A control unit takes one picture, or a picture and its mask.")
    if isinstance(image, Mapping):
        image, mask = image.get("image"), image.get("mask")
    # webuiapi sends an empty text for none.
    for value in (image, mask):
        if value is not None and not isinstance(value, str):
            raise HandlerError(500, f"Unrecognized image field {str(value)[:80]}", error="ValueError")
    return image or None, mask or None


def _number(unit: Mapping[str, Any], name: str, default: float, most: float) -> float:
    value = unit.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _invalid(name, "value is not a valid float", "type_error.float") from None
    if not number >= 0:
        text = "ensure this value is greater than or equal to 0.0"
        raise _invalid(name, text, "value_error.number.not_ge; limit_value=0.0")
    if number > most:
        text = f"ensure this value is less than or equal to {most}"
        raise _invalid(name, text, f"value_error.number.not_le; limit_value={most}")
    return number


def _plain_number(unit: Mapping[str, Any], name: str) -> float:
    """-1, like anything out of range, is the module's default."""
    value = unit.get(name, -1)
    whole = name == "processor_res"
    try:
        return int(value) if whole else float(value)
    except (TypeError, ValueError, OverflowError):
        kind = "integer" if whole else "float"
        raise _invalid(name, f"value is not a valid {kind}", f"type_error.{kind}") from None


def _flag(unit: Mapping[str, Any], name: str, default: bool) -> bool:
    value = unit.get(name, default)
    if value in TRUE:
        return True
    if value in FALSE:
        return False
    raise _invalid(name, "value could not be parsed to a boolean", "type_error.bool")


def _chosen(
    unit: Mapping[str, Any],
    name: str,
    accepted: tuple[str, ...],
    default: str,
    aliases: Mapping[str, str] | None = None,
) -> str:
    value = unit.get(name, default)
    if name == "resize_mode" and not isinstance(value, str):
        raise _invalid(name, "", "assertion_error")
    value = (aliases or {}).get(value, value) if isinstance(value, str) else value
    if value not in accepted:
        raise _not_a_member(name, accepted)
    return str(value)


def _control_mode(unit: Mapping[str, Any]) -> str:
    """``guessmode`` of old clients is the last of the modes."""
    if "control_mode" not in unit and unit.get("guessmode") in TRUE:
        return CONTROL_MODES[-1]
    return _chosen(unit, "control_mode", CONTROL_MODES, "Balanced")


def _weights(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(float(weight) for weight in value)
    except (TypeError, ValueError):
        raise _invalid("advanced_weighting", "value is not a valid float", "type_error.float") from None


def _not_a_member(name: str, accepted: tuple[str, ...]) -> HandlerError:
    permitted = ", ".join(map(repr, accepted))
    kind = {"control_mode": "ControlMode", "hr_option": "HiResFixOption", "resize_mode": "ResizeMode"}[name]
    members = ", ".join(f"<{kind}.{MEMBERS[value]}: {value!r}>" for value in accepted)
    text = f"value is not a valid enumeration member; permitted: {permitted}"
    return _invalid(name, text, f"type_error.enum; enum_values=[{members}]")


MEMBERS = {
    "Balanced": "BALANCED", "My prompt is more important": "PROMPT", "ControlNet is more important": "CONTROL",
    "Both": "BOTH", "Low res only": "LOW_RES_ONLY", "High res only": "HIGH_RES_ONLY",
    "Just Resize": "RESIZE", "Crop and Resize": "INNER_FIT", "Resize and Fill": "OUTER_FIT",
}  # fmt: skip
"""What the extension calls them, as its errors show it."""


def _invalid(name: str, message: str, kind: str = "value_error") -> HandlerError:
    """As pydantic writes it."""
    text = f"1 validation error for ControlNetUnit\n{name}\n  {message} (type={kind})"
    return HandlerError(500, text, error="ValidationError")
