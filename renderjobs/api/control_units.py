"""``control`` of a job's request: units of ControlNet, field by field, nothing passed over and nothing guessed. Pure.

Field names are those of sd-webui-controlnet 1.1.455; its own, more forgiving way of reading units is in ``compat.sdapi``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import FieldError, InvalidRequestError
from gpuworker.contract.control_modules import BY_NAME
from renderjobs.compat.sdapi.control_units import names_of
from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.compat.sdapi.translate import Translation
from renderjobs.request import a_boolean, real, shown, whole

PLACE = "control"
PICTURES = {"image": "picture", "mask": "mask", "effective_region_mask": "effective_region_mask"}
"""Field of a unit → canonical name."""
AS_THEY_ARE = (
    "module", "model", "weight", "resize_mode", "guidance_start", "guidance_end", "pixel_perfect", "control_mode", "hr_option",
    "inpaint_crop_input_image", "advanced_weighting", "save_detected_map",
)  # fmt: skip
NUMBERS = ("processor_res", "threshold_a", "threshold_b")
"""Those whose range and default are the module's."""
UNIT_FIELDS = {"enabled", *PICTURES, *AS_THEY_ARE, *NUMBERS}


def add_units(made: Translation, units: Any) -> None:
    """Put the units that take part into the canonical request; what they hold besides pictures is checked when it is built.

    Raises:
        InvalidRequestError: With every field that is unknown or no value at all.
    """
    if not isinstance(units, list) or not all(isinstance(unit, Mapping) for unit in units):
        raise _wrong([FieldError(PLACE, "control must be a list of units, each an object.", units)])
    if made.canonical["control"]:
        message = "Units are in alwayson_scripts.controlnet already; control says the same in another way."
        raise _wrong([FieldError(PLACE, message)])
    errors: list[FieldError] = []
    canonical, places = [], []
    for place, unit in enumerate(units):
        found = _Unit(made, unit, f"{PLACE}.{place}")
        errors += found.errors
        if found.enabled:
            canonical.append(found.values)
            places.append(place)
    if errors:
        raise _wrong(errors)
    made.canonical["control"] = canonical
    made.names |= names_of(places, PLACE)


def _wrong(errors: list[FieldError]) -> InvalidRequestError:
    return InvalidRequestError([FieldError(f"request.{error.field}", error.message, error.value) for error in errors])


class _Unit:
    """One unit as it was read: its canonical values and what is wrong with it."""

    def __init__(self, made: Translation, sent: Mapping[str, Any], where: str) -> None:
        self.errors = [
            FieldError(f"{where}.{name}", f"Field {str(name)[:80]!r} of a control unit is unknown.")
            for name in sorted(set(sent) - UNIT_FIELDS)
        ]
        self.where = where
        self.enabled = self._checked("enabled", a_boolean, sent.get("enabled")) is not False
        self.values = {name: sent.get(name) for name in AS_THEY_ARE}
        self.values |= {name: self._picture(made, field, sent.get(field)) for field, name in PICTURES.items()}
        self.values |= self._numbers(sent)

    def _checked(self, name: str, check: Any, value: Any) -> Any:
        try:
            return None if value is None else check(value)
        except ValueError as error:
            self.errors.append(FieldError(f"{self.where}.{name}", f"{name} {error}", value))
            return None

    def _picture(self, made: Translation, name: str, text: Any) -> Any:
        def check(value: Any) -> Any:
            if not isinstance(value, str):
                raise ValueError(f"is {shown(value)}; base64 or a data URI is accepted.")
            try:
                return made.picture(value)
            except HandlerError as error:
                raise ValueError(f"is no picture: {error.detail}") from error

        return self._checked(name, check, text)

    def _numbers(self, sent: Mapping[str, Any]) -> dict[str, Any]:
        """In the module's range; null and -1 are its default. What the module does not take is its default too."""
        name = sent.get("module") or "none"
        module = BY_NAME.get(name) if isinstance(name, str) else None
        if module is None:
            return {}  # refused by its name
        found = dict(zip(NUMBERS, module.values(-1, -1, -1), strict=True))
        sliders = (module.resolution, *(*module.sliders, None, None)[:2])
        for field, slider in zip(NUMBERS, sliders, strict=True):
            if slider and sent.get(field) not in (None, -1):
                check = (
                    whole(int(slider.min), int(slider.max)) if slider is sliders[0] else real(slider.min, slider.max)
                )
                found[field] = self._checked(field, check, sent[field])
        return found
