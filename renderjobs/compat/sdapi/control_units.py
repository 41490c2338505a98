"""Units of the ControlNet extension as clients send them → units of the canonical request. Pure.

Source: ``ControlNetUnit`` of sd-webui-controlnet 1.1.455, ``internal_controlnet/args.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from gpuworker.contract import ControlUnit
from gpuworker.contract.control_modules import (
    AVAILABLE,
    BY_NAME,
    CONTROL_MODES,
    CROP_AND_RESIZE,
    HIRES_OPTIONS,
    NONE,
    RESIZE_AND_FILL,
    RESIZE_MODES,
    ControlModule,
)
from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.compat.sdapi.wire import Mismatch, boolean, integer, number

DEFAULT_UNITS = 3
OPTIONS: dict[str, Any] = {
    "control_net_unit_count": DEFAULT_UNITS, "control_net_no_detectmap": False, "control_net_detectmap_autosaving": False,
    "control_net_detectedmap_dir": "detected_maps", "control_net_models_path": "", "control_net_modules_path": "",
    "control_net_model_cache_size": 2, "control_net_sync_field_args": True, "control_net_allow_script_control": False,
    "control_net_inpaint_blur_sigma": 7,
}  # fmt: skip
"""The extension's own options and their defaults. A caller may set them; only ``NO_MAPS`` changes an answer here."""
NO_MAPS = "control_net_no_detectmap"
RESIZE_ALIASES = {
    "Inner Fit (Scale to Fit)": CROP_AND_RESIZE, "Outer Fit (Shrink to Fit)": RESIZE_AND_FILL,
    "Scale to Fit (Inner Fit)": CROP_AND_RESIZE, "Envelope (Outer Fit)": RESIZE_AND_FILL,
}  # fmt: skip
ALIASES = {
    "guidance": "guidance_end",
    "lowvram": "low_vram",
    "input_image": "image",
    "mask_image": "mask",
    "image_link": "image",
}
"""What the field was called before, or is called by hosted webuis → its name."""
PICTURE_FIELDS = {"picture": "image"}
"""Fields of a unit that clients call otherwise."""
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
    return [_unit(arguments[place], picture, save_maps) for place in places_of(arguments, most=most)]


def places_of(arguments: list[Any], *, most: int) -> list[int]:
    """Where the units that take part stand among the arguments."""
    return [place for place, unit in enumerate(arguments[:most]) if isinstance(unit, Mapping) and is_enabled(unit)]


def names_of(places: list[int], where: str) -> dict[str, str]:
    """Field of the canonical request → where it was sent, for errors."""
    return {"control": where} | {
        f"control.{index}.{field.name}": f"{where}.{place}.{PICTURE_FIELDS.get(field.name, field.name)}"
        for index, place in enumerate(places)
        for field in fields(ControlUnit)
    }


def is_enabled(unit: Mapping[str, Any]) -> bool:
    """A unit that does not say so is: the extension's default was that before May 2024, and old clients rely on it."""
    return unit.get("enabled") is None or bool(_checked(unit, "enabled", boolean, True))


def _unit(sent: Mapping[str, Any], picture: Picture, save_maps: bool) -> dict[str, Any]:
    unit = _with_names(sent)
    module = _module(unit.get("module", "none"))
    start, end = _share(unit, "guidance_start", 0.0), _share(unit, "guidance_end", 1.0)
    if start > end:
        raise _invalid("__root__", f"guidance_start({start}) > guidance_end({end})")
    resolution, threshold_a, threshold_b = _numbers(unit, module)
    image, mask = _image_and_mask(unit)
    region = _region(unit.get("effective_region_mask"))
    return {
        "module": unit.get("module", "none"),
        "model": _model(unit.get("model")),
        "picture": picture(image) if image else None,
        "mask": picture(mask) if mask else None,
        "effective_region_mask": picture(region) if region else None,
        "weight": _share(unit, "weight", 1.0, most=2.0),
        "resize_mode": _chosen(unit, "resize_mode", RESIZE_MODES, CROP_AND_RESIZE, RESIZE_ALIASES),
        "processor_res": resolution,
        "threshold_a": threshold_a,
        "threshold_b": threshold_b,
        "guidance_start": start,
        "guidance_end": end,
        "pixel_perfect": _checked(unit, "pixel_perfect", boolean, False),
        "control_mode": _control_mode(unit),
        "hr_option": _chosen(unit, "hr_option", HIRES_OPTIONS, "Both"),
        "inpaint_crop_input_image": _checked(unit, "inpaint_crop_input_image", boolean, True),
        "advanced_weighting": _weights(unit.get("advanced_weighting")),
        "save_detected_map": _checked(unit, "save_detected_map", boolean, True) and save_maps,
    }


def fields_of_text(text: str) -> dict[str, Any]:
    """What an infotext says of a unit, by field; nothing where the extension could not read it.

    Source: ``ControlNetUnit.parse`` and ``Infotext.on_infotext_pasted``.
    """
    pairs = [item.strip().split(": ") for item in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        return {}
    unit = {name.lower().replace(" ", "_"): _value_of_text(value) for name, value in pairs}
    try:
        module = _known_module(unit.get("module", "none"))
        resolution, threshold_a, threshold_b = _numbers(unit, module)
        return {
            "module": unit.get("module", "none"),
            "model": str(unit.get("model", NONE)),
            "weight": _share(unit, "weight", 1.0, most=2.0),
            "resize_mode": _chosen(unit, "resize_mode", RESIZE_MODES, CROP_AND_RESIZE, RESIZE_ALIASES),
            "processor_res": resolution,
            "threshold_a": threshold_a,
            "threshold_b": threshold_b,
            "guidance_start": _share(unit, "guidance_start", 0.0),
            "guidance_end": _share(unit, "guidance_end", 1.0),
            "pixel_perfect": _checked(unit, "pixel_perfect", boolean, False),
            "control_mode": _chosen(unit, "control_mode", CONTROL_MODES, "Balanced"),
        }
    except HandlerError:
        return {}


def _value_of_text(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _numbers(unit: Mapping[str, Any], module: ControlModule) -> tuple[float, float, float]:
    """-1, like anything out of range, is the module's default."""
    return module.values(
        _checked(unit, "processor_res", integer, -1),
        _checked(unit, "threshold_a", number, -1.0),
        _checked(unit, "threshold_b", number, -1.0),
    )


def _with_names(sent: Mapping[str, Any]) -> dict[str, Any]:
    """Under their present names. Clients that outlived a renaming send both; the extension refuses even equal values."""
    unit = dict(sent)
    for old, name in ALIASES.items():
        if unit.get(old) is None or (old == "image_link" and not unit[old]):
            continue
        if unit.get(name) not in (None, unit[old]):
            raise HandlerError(500, f"Conflict of field '{old}' and '{name}'", error="AssertionError")
        unit[name] = unit[old]
    return unit


def _known_module(name: Any) -> ControlModule:
    module = BY_NAME.get(name) if isinstance(name, str) else None
    if module is None:
        raise _invalid("module", f"module({str(name)[:200]}) not found in supported modules.")
    return module


def _module(name: Any) -> ControlModule:
    module = _known_module(name)
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


def _region(text: Any) -> str | None:
    if text is not None and not isinstance(text, str):
        raise _invalid("effective_region_mask", "", "assertion_error")
    return text or None


def _checked(unit: Mapping[str, Any], name: str, check: Callable[[Any], Any], default: Any) -> Any:
    value = unit.get(name, default)
    if value is None:
        raise _invalid(name, "none is not an allowed value", "type_error.none.not_allowed")
    try:
        return check(value)
    except Mismatch as error:
        raise _invalid(name, str(error), error.kind) from None


def _share(unit: Mapping[str, Any], name: str, default: float, *, most: float = 1.0) -> float:
    value: float = _checked(unit, name, number, default)
    if not value >= 0:
        text = "ensure this value is greater than or equal to 0.0"
        raise _invalid(name, text, "value_error.number.not_ge; limit_value=0.0")
    if value > most:
        text = f"ensure this value is less than or equal to {most}"
        raise _invalid(name, text, f"value_error.number.not_le; limit_value={most}")
    return value


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
    if "control_mode" not in unit and unit.get("guessmode") is not None and _checked(unit, "guessmode", boolean, False):
        return CONTROL_MODES[-1]
    return _chosen(unit, "control_mode", CONTROL_MODES, "Balanced")


def _weights(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise _invalid("advanced_weighting", "value is not a valid list", "type_error.list")
    try:
        return tuple(number(weight) for weight in value)
    except Mismatch as error:
        raise _invalid("advanced_weighting", str(error), error.kind) from None


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
    """As pydantic writes it, of the first field that is wrong."""
    text = f"1 validation error for ControlNetUnit\n{name}\n  {message} (type={kind})"
    return HandlerError(500, text, error="ValidationError")
