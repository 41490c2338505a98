"""The bodies of this door: fields in the order of the echo, defaults, and pydantic v1's coercions. Knows nothing of rendering."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from renderjobs.compat.sdapi.errors import WireError, field_detail, json_detail

TRUE = (True, 1, "1", "true", "t", "yes", "y", "on")
FALSE = (False, 0, "0", "false", "f", "no", "n", "off")


class Mismatch(ValueError):
    """A value is not of the field's type: pydantic's message and type name. ``item`` is the place within a list."""

    def __init__(self, message: str, kind: str, item: int | None = None):
        super().__init__(message)
        self.kind = kind
        self.item = item


def integer(value: Any) -> int:
    try:
        if isinstance(value, (int, float, str)) and not (isinstance(value, float) and not math.isfinite(value)):
            return int(value)
    except ValueError:
        pass
    raise Mismatch("value is not a valid integer", "type_error.integer")


def number(value: Any) -> float:
    try:
        if isinstance(value, (int, float, str)):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise Mismatch("value is not a valid float", "type_error.float")


def text(value: Any) -> str:
    if isinstance(value, (str, int, float)):
        return str(value)
    raise Mismatch("str type expected", "type_error.str")


def boolean(value: Any) -> bool:
    plain = value.lower() if isinstance(value, str) else value
    if isinstance(plain, (bool, int, str)):
        if plain in TRUE:
            return True
        if plain in FALSE:
            return False
    raise Mismatch("value could not be parsed to a boolean", "type_error.bool")


def mapping(value: Any) -> dict[str, Any]:
    try:
        return dict(value)  # `[]`, what PHP makes of an empty object, passes here too
    except (TypeError, ValueError):
        raise Mismatch("value is not a valid dict", "type_error.dict") from None


def items(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    raise Mismatch("value is not a valid list", "type_error.list")


def texts(value: Any) -> list[str]:
    result = []
    for position, item in enumerate(items(value)):
        try:
            result.append(text(item))
        except Mismatch as error:
            raise Mismatch(str(error), error.kind, position) from None
    return result


@dataclass(frozen=True, slots=True)
class Chosen:
    accepted: tuple[int, ...]

    def __call__(self, value: Any) -> int:
        # Of a literal pydantic takes the very value; "1" is none.
        if isinstance(value, bool) or value not in self.accepted:
            permitted = ", ".join(str(item) for item in self.accepted)
            raise Mismatch(f"unexpected value; permitted: {permitted}", "value_error.const")
        return value


@dataclass(frozen=True, slots=True)
class Bounded:
    first: float
    last: float
    open_start: bool = False

    def __call__(self, value: Any) -> float:
        found = number(value)
        if not math.isfinite(found):
            raise Mismatch("ensure this value is a finite number", "value_error.number.not_finite_number")
        if self.open_start and found <= self.first:
            raise Mismatch(f"ensure this value is greater than {self.first}", "value_error.number.not_gt")
        if found < self.first:
            raise Mismatch(f"ensure this value is greater than or equal to {self.first}", "value_error.number.not_ge")
        if found > self.last:
            raise Mismatch(f"ensure this value is less than or equal to {self.last}", "value_error.number.not_le")
        return found


@dataclass(frozen=True, slots=True)
class AtLeast:
    first: int

    def __call__(self, value: Any) -> int:
        found = integer(value)
        if found < self.first:
            raise Mismatch(f"ensure this value is greater than or equal to {self.first}", "value_error.number.not_ge")
        return found


def named_pictures(value: Any) -> list[dict[str, str]]:
    pictures = []
    for position, item in enumerate(items(value)):
        if not isinstance(item, Mapping) or not {"data", "name"} <= item.keys():
            raise Mismatch("field required", "value_error.missing", position)
        pictures.append({"data": text(item["data"]), "name": text(item["name"])})
    return pictures


@dataclass(frozen=True, slots=True)
class Field:
    coerce: Callable[[Any], Any]
    default: Any = None
    nullable: bool = True
    required: bool = False


COMMON = {
    "prompt": Field(text, ""),
    "negative_prompt": Field(text, ""),
    "styles": Field(texts),
    "seed": Field(integer, -1),
    "subseed": Field(integer, -1),
    "subseed_strength": Field(number, 0),
    "seed_resize_from_h": Field(integer, -1),
    "seed_resize_from_w": Field(integer, -1),
    "sampler_name": Field(text),
    "scheduler": Field(text),
    "batch_size": Field(integer, 1),
    "n_iter": Field(integer, 1),
    "steps": Field(integer, 50),
    "cfg_scale": Field(number, 7.0),
    "width": Field(integer, 512),
    "height": Field(integer, 512),
    "restore_faces": Field(boolean),
    "tiling": Field(boolean),
    "do_not_save_samples": Field(boolean, False),
    "do_not_save_grid": Field(boolean, False),
    "eta": Field(number),
    "denoising_strength": Field(number),
    "s_min_uncond": Field(number),
    "s_churn": Field(number),
    "s_tmax": Field(number),
    "s_tmin": Field(number),
    "s_noise": Field(number),
    "override_settings": Field(mapping),
    "override_settings_restore_afterwards": Field(boolean, True),
    "refiner_checkpoint": Field(text),
    "refiner_switch_at": Field(number),
    "disable_extra_networks": Field(boolean, False),
    "firstpass_image": Field(text),
    "comments": Field(mapping),
}
TXT2IMG = {
    **COMMON,
    "enable_hr": Field(boolean, False),
    "firstphase_width": Field(integer, 0),
    "firstphase_height": Field(integer, 0),
    "hr_scale": Field(number, 2.0),
    "hr_upscaler": Field(text),
    "hr_second_pass_steps": Field(integer, 0),
    "hr_resize_x": Field(integer, 0),
    "hr_resize_y": Field(integer, 0),
    "hr_checkpoint_name": Field(text),
    "hr_sampler_name": Field(text),
    "hr_scheduler": Field(text),
    "hr_prompt": Field(text, ""),
    "hr_negative_prompt": Field(text, ""),
    "force_task_id": Field(text),
    "sampler_index": Field(text, "Euler", nullable=False),
    "script_name": Field(text),
    "script_args": Field(items, [], nullable=False),
    "send_images": Field(boolean, True, nullable=False),
    "save_images": Field(boolean, False, nullable=False),
    "alwayson_scripts": Field(mapping, {}, nullable=False),
    "infotext": Field(text),
}
IMG2IMG = {
    **COMMON,
    "denoising_strength": Field(number, 0.75, nullable=False),
    "init_images": Field(texts),
    "resize_mode": Field(integer, 0),
    "image_cfg_scale": Field(number),
    "mask": Field(text),
    "mask_blur_x": Field(integer, 4),
    "mask_blur_y": Field(integer, 4),
    "mask_blur": Field(integer),
    "mask_round": Field(boolean, True),
    "inpainting_fill": Field(integer, 0),
    "inpaint_full_res": Field(boolean, True),
    "inpaint_full_res_padding": Field(integer, 0),
    "inpainting_mask_invert": Field(integer, 0),
    "initial_noise_multiplier": Field(number),
    "latent_mask": Field(text),
    "force_task_id": Field(text),
    "sampler_index": Field(text, "Euler", nullable=False),
    "include_init_images": Field(boolean, False, nullable=False),
    "script_name": Field(text),
    "script_args": Field(items, [], nullable=False),
    "send_images": Field(boolean, True, nullable=False),
    "save_images": Field(boolean, False, nullable=False),
    "alwayson_scripts": Field(mapping, {}, nullable=False),
    "infotext": Field(text),
}
OURS = {"sd_model_checkpoint": Field(text)}
"""Not A1111's and not part of the echo: the checkpoint at the top level, as the documents of hosted webuis send it."""
EXTRAS = {
    "resize_mode": Field(Chosen((0, 1)), 0),
    "show_extras_results": Field(boolean, True),
    "gfpgan_visibility": Field(Bounded(0, 1), 0),
    "codeformer_visibility": Field(Bounded(0, 1), 0),
    "codeformer_weight": Field(Bounded(0, 1), 0),
    "upscaling_resize": Field(Bounded(0, math.inf, open_start=True), 2),
    "upscaling_resize_w": Field(AtLeast(1), 512),
    "upscaling_resize_h": Field(AtLeast(1), 512),
    "upscaling_crop": Field(boolean, True),
    "upscaler_1": Field(text, "None"),
    "upscaler_2": Field(text, "None"),
    "extras_upscaler_2_visibility": Field(Bounded(0, 1), 0),
    "upscale_first": Field(boolean, False),
}
PROGRESS = {"skip_current_image": Field(boolean, False)}
"""Of the query."""
TASK_PROGRESS = {
    "id_task": Field(text),
    "id_live_preview": Field(integer, -1, nullable=False),
    "live_preview": Field(boolean, True, nullable=False),
}
INTERROGATE = {"image": Field(text, "", nullable=False), "model": Field(text, "clip", nullable=False)}
PNG_INFO = {"image": Field(text, nullable=False, required=True)}
DETECT = {
    "controlnet_module": Field(text, "none", nullable=False),
    "controlnet_input_images": Field(texts, (), nullable=False),
    "controlnet_processor_res": Field(integer, -1, nullable=False),
    "controlnet_threshold_a": Field(number, -1, nullable=False),
    "controlnet_threshold_b": Field(number, -1, nullable=False),
    "controlnet_masks": Field(texts, (), nullable=False),
    "low_vram": Field(boolean, False, nullable=False),
}
DETECT_AS_SENT = {**DETECT, "controlnet_images": Field(texts, (), nullable=False)}
"""With the key under which webuiapi sends the pictures; the extension itself does not know it."""
EXTRAS_SINGLE = {**EXTRAS, "image": Field(text, "")}
EXTRAS_BATCH = {**EXTRAS, "imageList": Field(named_pictures, nullable=False, required=True)}


def body_of(data: bytes) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        WireError: No body, no JSON, or not an object, as FastAPI words it.
    """
    if not data.strip():
        raise WireError({"loc": ["body"], "msg": "field required", "type": "value_error.missing"})
    try:
        body = json.loads(data)
    except json.JSONDecodeError as error:
        raise WireError(json_detail(error)) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise WireError({"loc": ["body"], "msg": "body is not valid JSON", "type": "value_error.jsondecode"}) from error
    if not isinstance(body, dict):
        raise WireError({"loc": ["body"], "msg": "value is not a valid dict", "type": "type_error.dict"})
    return body


def parsed(body: Mapping[str, Any], fields: Mapping[str, Field], *, place: str = "body") -> dict[str, Any]:
    """Every field with its coerced value or default, in the order of ``fields``; unknown keys are passed over.

    Raises:
        WireError: With one entry per wrong field.
    """
    values, details = {}, []
    for name, field in fields.items():
        if name not in body:
            values[name] = field.default
            if field.required:
                details.append(field_detail(name, "field required", "value_error.missing", place))
            continue
        try:
            values[name] = coerced(body[name], field)
        except Mismatch as error:
            detail = field_detail(name, str(error), error.kind, place)
            details.append(detail if error.item is None else {**detail, "loc": [*detail["loc"], error.item]})
    if details:
        raise WireError(*details)
    return values


def coerced(value: Any, field: Field) -> Any:
    if value is not None:
        return field.coerce(value)
    if not field.nullable:
        raise Mismatch("none is not an allowed value", "type_error.none.not_allowed")
    return None
