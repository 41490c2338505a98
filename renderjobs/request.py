"""RenderRequest, the one canonical form: frozen, validated, every default filled in. Every door produces it.

Doors translate their own field names and defaults first; what arrives here is checked once, and whatever passes here can
be rendered. No database: the checkpoint is looked up in ``submission``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from django.conf import settings

from common.errors import FieldError, InvalidRequestError
from gpuworker.contract import (
    SETTINGS,
    ControlUnit,
    DetectRecipe,
    ExtrasRecipe,
    Hires,
    Img2Img,
    Inpaint,
    InputPicture,
    Reconstruction,
    Refiner,
    Settings,
    SoftInpainting,
    Texts,
    Weights,
)
from gpuworker.contract.control_modules import (
    AVAILABLE,
    BY_NAME,
    CONTROL_MODES,
    HIRES_OPTIONS,
    JUST_RESIZE,
    NONE,
    RESIZE_AND_FILL,
    RESIZE_MODES,
)
from gpuworker.contract.extras import extras_size
from gpuworker.contract.recipe import from_plain, hires_canvas, hires_size, map_size
from gpuworker.contract.safety import MODES, OFF
from gpuworker.contract.samplers import SAMPLERS, SCHEDULES
from renderjobs.choices import JobKind

EMPHASIS_MODES = ("Original", "No norm", "Ignore", "None")
MOST_UNITS = 10
"""Of ControlNet; A1111 lets an installation have as many."""
MOST_RESIDUALS = 13
SEED_RANGE = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderRequest:
    """What was asked for, in A1111's words. Seeds may still be -1 (random); they are resolved when images are made."""

    kind: str = JobKind.TXT2IMG
    checkpoint: str = ""
    """Name as the caller wrote it; empty is the installation's default."""
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0.0
    seed_resize_from_w: int = -1
    seed_resize_from_h: int = -1
    sampler: str = "Euler"
    """A1111 sampler name without a schedule suffix."""
    schedule: str = "Automatic"
    """A1111 scheduler label."""
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 20
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    tiling: bool = False
    clip_skip: int = 1
    eta: float | None = None
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 0.0
    s_noise: float = 1.0
    ensd: int = 0
    emphasis: str = "Original"
    denoising_strength: float | None = None
    vae: str = ""
    """Name of a VAE file; empty is the checkpoint's own."""
    networks: bool = True
    """Whether network tags in prompts switch networks on; they are taken out either way."""
    exact: bool = False
    samples_format: str = "png"
    """Of the stored files: ``png``, ``jpg``, ``jpeg`` or ``webp``."""
    jpeg_quality: int = 80
    webp_lossless: bool = False
    # Groups, in the classes of the contract. Weights in them are names: their hashes are empty until submission pins them.
    refiner: Refiner | None = None
    hires: Hires | None = None
    img2img: tuple[Img2Img, ...] = ()
    """One per picture sent; images take them in turn."""
    control: tuple[ControlUnit, ...] = ()
    strict_control: bool = False
    """A control unit that cannot be used refuses the job; otherwise the pictures are drawn without control, as A1111 draws them."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Infotext parameters of a script that made this request; no caller sends them."""
    settings: Settings = field(default_factory=Settings)
    extras: ExtrasRecipe | None = None
    """Of a job that enlarges; one image per picture."""
    more_pictures: tuple[InputPicture, ...] = ()
    """Of a job that enlarges: what follows the picture of ``extras``."""
    detect: tuple[DetectRecipe, ...] = ()
    """Of a job that makes control maps: one per picture."""
    texts: tuple[Texts, ...] = ()
    """One per image, where a door has resolved what ``prompt`` leaves open; empty is one for all."""
    seeds: tuple[int, ...] = ()
    """One per image, in place of those that follow from ``seed``."""
    safety: str = OFF
    """What is done with pictures that the safety filter catches; the submission decides, no caller."""

    @property
    def images_total(self) -> int:
        if self.extras:
            return 1 + len(self.more_pictures)
        return len(self.detect) or len(self.texts) or self.n_iter * self.batch_size

    def of_image(self, index: int) -> RenderRequest:
        """With the texts of this image alone."""
        if not self.texts:
            return self
        own = self.texts[index]
        hires = self.hires and replace(self.hires, prompt=own.hires_prompt, negative_prompt=own.hires_negative_prompt)
        return replace(self, prompt=own.prompt, negative_prompt=own.negative_prompt, hires=hires, texts=())

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height in pixels of the largest picture that is made on the way."""
        if self.hires:
            sizes = hires_size(self.width, self.height, self.hires), hires_canvas(self.width, self.height, self.hires)
            return max(size[0] for size in sizes), max(size[1] for size in sizes)
        if self.extras:
            return extras_size(self.extras, *(picture for picture in self.inputs()))
        if self.detect:
            maps = [map_size(recipe) for recipe in self.detect]
            return max(width for width, _ in maps), max(height for _, height in maps)
        return self.width, self.height

    def prompts(self) -> Iterator[str]:
        """Every text that is encoded."""
        first = self.img2img[0].reconstruction if self.img2img else None
        for part in (self, self.hires, first):
            if part:
                yield from (part.prompt, part.negative_prompt)

    def inputs(self) -> Iterator[InputPicture]:
        """Every picture the caller sent."""
        for given in self.img2img:
            yield given.picture
            if given.inpaint:
                yield from given.inpaint.inputs()
        for unit in self.control:
            yield from unit.inputs()
        for recipe in self.detect:
            yield from recipe.inputs()
        yield from self.extras.inputs() if self.extras else ()
        yield from self.more_pictures

    def to_json(self) -> dict[str, Any]:
        plain = {**asdict(self), "settings": self.settings.to_json()}
        if self.extras:
            plain["extras"] = self.extras.to_json()
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RenderRequest:
        return from_plain(cls, data)

    @classmethod
    def build(cls, values: Mapping[str, Any], *, names: Mapping[str, str] | None = None) -> RenderRequest:
        """Check every value and fill in the defaults.

        Args:
            values: Canonical field name → value; None means the default.
            names: Canonical name → the name the caller used, for errors.
        Raises:
            InvalidRequestError: With one entry for every wrong field.
        """
        names = names or {}
        given = {name: value for name, value in values.items() if value is not None}
        errors: list[FieldError] = []
        checked: dict[str, Any] = {}
        for name, check in CHECKS.items():
            if name not in given:
                continue
            try:
                checked[name] = check(given[name])
            except GroupError as error:
                for part, (message, value) in error.parts.items():
                    whole_name = f"{name}.{part}"
                    shown_name = names.get(whole_name, whole_name if "." in part else part)
                    errors.append(FieldError(shown_name, f"{shown_name} {message}", value))
            except ValueError as error:
                errors.append(FieldError(names.get(name, name), f"{names.get(name, name)} {error}", given[name]))
        unknown = set(given) - set(CHECKS)
        assert not unknown, f"A door passed unknown canonical fields: {sorted(unknown)}."
        if not errors:
            request = cls(**checked)
            errors = list(cross_checks(request, names))
        if errors:
            raise InvalidRequestError(errors)
        return request


ENLARGING = {"hires": "hires.scale", "extras": "extras.upscaling_resize", "detect": "detect.processor_res"}
"""Group → the field that decides how large the picture gets."""


def cross_checks(request: RenderRequest, names: Mapping[str, str]) -> list[FieldError]:
    """What no single field shows."""
    errors = []
    width, height = request.canvas
    if width * height > settings.MAX_PIXELS:
        enlarged = next((field for kind, field in ENLARGING.items() if getattr(request, kind)), "width")
        message = f"A picture of {width} x {height} pixels exceeds the limit of {settings.MAX_PIXELS}."
        errors.append(FieldError(names.get(enlarged, enlarged.rpartition(".")[2]), message, width))
    if request.hires and min(width, height) < settings.MIN_SIDE_PX:
        message = f"A hires pass of {width} x {height} pixels is smaller than {settings.MIN_SIDE_PX}."
        errors.append(FieldError(names.get("hires.scale", "hr_scale"), message, request.hires.scale))
    if request.images_total > settings.MAX_IMAGES_PER_JOB:
        field = names.get("n_iter", "n_iter")
        message = (
            f"n_iter x batch_size is {request.images_total}; a job has at most {settings.MAX_IMAGES_PER_JOB} images."
        )
        errors.append(FieldError(field, message, request.n_iter))
    for index, unit in enumerate(request.control):
        wrong = [*unit_errors(unit, request), *((unusable(unit, request),) if request.strict_control else ())]
        for part, message in filter(None, wrong):
            place = names.get(f"control.{index}.{part}", f"control.{index}.{part}")
            errors.append(FieldError(place, message, getattr(unit, part) if part in SHOWN_PARTS else None))
    return errors


SHOWN_PARTS = ("model", "guidance_start")
"""Parts of a unit whose value an error repeats."""


def unit_errors(unit: ControlUnit, request: RenderRequest) -> Iterator[tuple[str, str]]:
    """What is wrong with a control unit whoever sends it: (part, message)."""
    if unit.guidance_start > unit.guidance_end:
        yield "guidance_start", f"guidance_start {unit.guidance_start} lies behind guidance_end {unit.guidance_end}."
    picture, mask = unit.picture, unit.mask
    if picture and mask and (picture.width, picture.height) != (mask.width, mask.height):
        sizes = f"{mask.width} x {mask.height} pixels, its picture {picture.width} x {picture.height}"
        yield "mask", f"The mask of a control picture has {sizes}."
    shown_picture = picture or (request.img2img[0].picture if request.img2img else None)
    if shown_picture and (pixels := _pixels_on_the_way(unit, shown_picture, request)) > settings.MAX_INPUT_PIXELS:
        limit = settings.MAX_INPUT_PIXELS
        yield "picture", f"Fitting this control picture takes a map of {pixels} pixels; the limit is {limit}."


def _pixels_on_the_way(unit: ControlUnit, picture: InputPicture, request: RenderRequest) -> int:
    """Of the largest map that is made of the picture before it is cut to the canvas: thin pictures make huge ones."""
    width, height = request.canvas
    factors = width / picture.width, height / picture.height
    fitted = (
        1.0
        if unit.resize_mode == JUST_RESIZE
        else min(factors)
        if unit.resize_mode == RESIZE_AND_FILL
        else max(factors)
    )
    detected = fitted if unit.pixel_perfect else unit.processor_res / min(picture.width, picture.height)
    factor = max(1.0, fitted, detected)
    return int(picture.width * factor * picture.height * factor)


def unusable(unit: ControlUnit, request: RenderRequest) -> tuple[str, str] | None:
    """Why a control unit could not act, as far as the request tells: (part, message)."""
    if unit.model == NONE and not BY_NAME[unit.module].model_free:
        return "model", f"Module {unit.module!r} needs a ControlNet; model says none."
    if unit.picture is None and unit.mask:
        return "mask", "A control unit has a mask without a picture."
    if unit.picture is None and not request.img2img:
        return "picture", "A control unit has no picture, and there is none of img2img's to take."
    return None


def a_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is {shown(value)}; a text is accepted.")
    if len(value.encode("utf-8", "surrogatepass")) > settings.MAX_PROMPT_BYTES:
        raise ValueError(f"is longer than {settings.MAX_PROMPT_BYTES} bytes.")
    if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("holds a character that is not text (NUL or half a surrogate pair).")
    return value


def whole(minimum: int, maximum: int) -> Any:
    def check(value: Any) -> int:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or value != value
            or int_or_none(value) is None
        ):
            raise ValueError(f"is {shown(value)}; a whole number is accepted.")
        if not minimum <= value <= maximum:
            raise ValueError(f"is {shown(value)}; accepted are {minimum} to {maximum}.")
        return int(value)

    return check


def int_or_none(value: float) -> int | None:
    if isinstance(value, float) and (math.isinf(value) or value != int(value)):
        return None
    return int(value)


def real(minimum: float, maximum: float) -> Any:
    def check(value: Any) -> float:
        # Only floats are asked whether they are finite: an int too large to be one would raise OverflowError.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"is {shown(value)}; a number is accepted.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"is {shown(value)}; a number is accepted.")
        if not minimum <= value <= maximum:
            raise ValueError(f"is {shown(value)}; accepted are {minimum} to {maximum}.")
        return float(value)

    return check


def number(minimum: float, maximum: float) -> Any:
    """As ``real``; a whole number stays one, as infotexts show it."""
    check = real(minimum, maximum)

    def checked(value: Any) -> float:
        check(value)
        return value  # type: ignore[no-any-return]

    return checked


def a_boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"is {shown(value)}; true or false is accepted.")
    return value


def one_of(accepted: tuple[str, ...]) -> Any:
    def check(value: Any) -> str:
        if value not in accepted:
            raise ValueError(f"is {shown(value)}; accepted are {', '.join(accepted)}.")
        return str(value)

    return check


def shown(value: Any) -> str:
    """The value as the caller wrote it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"


class GroupError(ValueError):
    """What is wrong inside a group: field → (message, value)."""

    def __init__(self, parts: dict[str, tuple[str, Any]]) -> None:
        super().__init__("is wrong.")
        self.parts = parts


def group(cls: type[Any], checks: Mapping[str, Any]) -> Callable[[Any], Any]:
    """A check of a mapping that becomes ``cls``; fields without a check are taken as they come, None is the default."""

    def check(value: Mapping[str, Any]) -> Any:
        wrong: dict[str, tuple[str, Any]] = {}
        made: dict[str, Any] = {}
        for name, part in value.items():
            if part is None:
                continue
            try:
                made[name] = checks[name](part) if name in checks else part
            except GroupError as error:
                wrong |= error.parts
            except ValueError as error:
                wrong[name] = (str(error), part)
        if wrong:
            raise GroupError(wrong)
        return cls(**made)

    return check


def several(check: Callable[[Any], Any], most: int) -> Callable[[Any], tuple[Any, ...]]:
    def check_all(values: Any) -> tuple[Any, ...]:
        if not isinstance(values, list | tuple):
            raise ValueError(f"is {shown(values)}; a list is accepted.")
        if len(values) > most:
            raise ValueError(f"holds {len(values)} entries; at most {most} are accepted.")
        return tuple(check(value) for value in values)

    return check_all


def numbered(check: Callable[[Any], Any], most: int) -> Callable[[Any], tuple[Any, ...]]:
    """As ``several``, of groups; every wrong field is named with the number of its group: ``2.weight``."""

    def check_all(values: Any) -> tuple[Any, ...]:
        made: list[Any] = []
        wrong: dict[str, tuple[str, Any]] = {}

        def checked(value: Any) -> None:
            try:
                made.append(check(value))
            except GroupError as error:
                made.append(None)
                wrong.update({f"{len(made) - 1}.{part}": why for part, why in error.parts.items()})

        several(checked, most)(values)
        if wrong:
            raise GroupError(wrong)
        return tuple(made)

    return check_all


def named_weights(value: Any) -> Weights:
    """A name, not pinned yet."""
    return Weights(name=a_text(value), sha256="")


def an_input(value: Any) -> InputPicture:
    if not isinstance(value, InputPicture):
        raise ValueError("is no picture.")
    return value


def of_type(default: Any) -> Callable[[Any], Any]:
    """The check that a setting of this default gets."""
    if isinstance(default, bool):
        return a_boolean
    if isinstance(default, int):
        return whole(-(2**31), 2**31 - 1)
    return real(-1e6, 1e6) if isinstance(default, float) else a_text


def a_colour(value: Any) -> str:
    text = a_text(value)
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ValueError(f"is {shown(value)}; a colour such as #ffffff is accepted.")
    return text


SETTING_CHECKS: dict[str, Any] = {
    **{name: of_type(default) for name, default in SETTINGS.items()},
    "randn_source": one_of(("GPU", "CPU", "NV")),
    "sd_noise_schedule": one_of(("Default", "Zero Terminal SNR")),
    "uni_pc_variant": one_of(("bh1", "bh2", "vary_coeff")),
    "uni_pc_skip_type": one_of(("time_uniform", "time_quadratic", "logSNR")),
    "uni_pc_order": whole(1, 50),
    "hires_fix_refiner_pass": one_of(("first pass", "second pass", "both passes")),
    "sigma_min": real(0, 1000),
    "sigma_max": real(0, 1000),
    "rho": real(0, 100),
    "beta_dist_alpha": real(0.01, 10),
    "beta_dist_beta": real(0.01, 10),
    "skip_early_cond": real(0, 1),
    "s_churn": real(0, 100),
    "s_tmin": real(0, 1000),
    "s_tmax": real(0, 1000),
    "s_noise": real(0, 10),
    "comma_padding_backtrack": whole(0, 74),
    "token_merging_ratio": real(0, 0.9),
    "token_merging_ratio_img2img": real(0, 0.9),
    "token_merging_ratio_hr": real(0, 0.9),
    "inpainting_mask_weight": real(0, 1),
    "img2img_extra_noise": real(0, 1),
    "img2img_background_color": a_colour,
    "ESRGAN_tile": whole(0, 2048),
    "ESRGAN_tile_overlap": whole(0, 64),
    "sdxl_crop_top": whole(0, 8192),
    "sdxl_crop_left": whole(0, 8192),
}
SOFT_CHECKS = {
    "power": real(0, 8), "scale": real(0, 1), "detail": real(1, 32), "mask_influence": real(0, 1),
    "difference_threshold": real(0, 8), "difference_contrast": real(0, 8),
}  # fmt: skip
INPAINT_CHECKS = {
    "mask": an_input,
    "latent_mask": an_input,
    "blur_x": whole(0, 256),
    "blur_y": whole(0, 256),
    "round": a_boolean,
    "fill": whole(0, 3),
    "full_res": a_boolean,
    "padding": whole(0, 1024),
    "invert": a_boolean,
    "soft": group(SoftInpainting, SOFT_CHECKS),
}
RECONSTRUCTION_CHECKS = {
    "prompt": a_text,
    "negative_prompt": a_text,
    "cfg_scale": real(-100, 100),
    "steps": whole(1, settings.MAX_STEPS),
    "randomness": real(0, 1),
    "sigma_adjustment": a_boolean,
}
IMG2IMG_CHECKS = {
    "picture": an_input,
    "resize_mode": whole(0, 3),
    "inpaint": group(Inpaint, INPAINT_CHECKS),
    "image_cfg_scale": real(0, 100),
    "noise_multiplier": real(0, 10),
    "reconstruction": group(Reconstruction, RECONSTRUCTION_CHECKS),
}
HIRES_CHECKS = {
    "scale": real(0.05, 16),
    "resize_x": whole(0, settings.MAX_SIDE_PX),
    "resize_y": whole(0, settings.MAX_SIDE_PX),
    "upscaler": a_text,
    "steps": whole(0, settings.MAX_STEPS),
    "sampler": a_text,
    "schedule": a_text,
    "prompt": a_text,
    "negative_prompt": a_text,
    "checkpoint": named_weights,
}
EXTRAS_CHECKS = {
    "picture": an_input,
    "resize_mode": whole(0, 1),
    # A whole number stays one: texts say 2 where it was the default, 2.0 where it was sent.
    "upscaling_resize": number(0.01, 16),
    "upscaling_resize_w": whole(1, settings.MAX_SIDE_PX),
    "upscaling_resize_h": whole(1, settings.MAX_SIDE_PX),
    "extras_upscaler_2_visibility": real(0, 1),
    "gfpgan_visibility": real(0, 1),
    "codeformer_visibility": real(0, 1),
    "codeformer_weight": real(0, 1),
}
CONTROL_CHECKS = {
    "module": one_of(tuple(sorted(name for name, module in BY_NAME.items() if module.name in AVAILABLE))),
    "model": a_text,
    "picture": an_input,
    "mask": an_input,
    "effective_region_mask": an_input,
    "weight": real(0, 2),
    "resize_mode": one_of(RESIZE_MODES),
    "processor_res": number(0, 2048),
    "threshold_a": number(0, 360),
    "threshold_b": number(0, 360),
    "guidance_start": real(0, 1),
    "guidance_end": real(0, 1),
    "pixel_perfect": a_boolean,
    "control_mode": one_of(CONTROL_MODES),
    "hr_option": one_of(HIRES_OPTIONS),
    "inpaint_crop_input_image": a_boolean,
    "save_detected_map": a_boolean,
    "advanced_weighting": several(real(-100, 100), MOST_RESIDUALS),
}
DETECT_CHECKS = {
    "picture": an_input,
    "mask": an_input,
    "module": one_of(tuple(sorted(AVAILABLE))),
    "processor_res": number(0, 2048),
    "threshold_a": number(0, 360),
    "threshold_b": number(0, 360),
}
TEXT_FIELDS = ("prompt", "negative_prompt", "hires_prompt", "hires_negative_prompt")
CHECKS: dict[str, Any] = {
    "kind": one_of(tuple(JobKind.values)),
    "checkpoint": a_text,
    "prompt": a_text,
    "negative_prompt": a_text,
    "seed": whole(*SEED_RANGE),
    "subseed": whole(*SEED_RANGE),
    "subseed_strength": real(0, 1),
    "seed_resize_from_w": whole(-1, settings.MAX_SIDE_PX),
    "seed_resize_from_h": whole(-1, settings.MAX_SIDE_PX),
    "sampler": one_of(tuple(sampler.name for sampler in SAMPLERS if sampler.implemented)),
    "schedule": one_of(tuple(schedule.label for schedule in SCHEDULES)),
    "batch_size": whole(1, settings.MAX_BATCH_SIZE),
    "n_iter": whole(1, settings.MAX_IMAGES_PER_JOB),
    "steps": whole(1, settings.MAX_STEPS),
    "cfg_scale": real(-100, 100),
    "width": whole(settings.MIN_SIDE_PX, settings.MAX_SIDE_PX),
    "height": whole(settings.MIN_SIDE_PX, settings.MAX_SIDE_PX),
    "tiling": a_boolean,
    "clip_skip": whole(1, 12),
    "eta": real(0, 10),
    "s_churn": real(0, 100),
    "s_tmin": real(0, 1000),
    "s_tmax": real(0, 1000),
    "s_noise": real(0, 10),
    "ensd": whole(-(2**31), 2**31 - 1),
    "emphasis": one_of(EMPHASIS_MODES),
    "denoising_strength": real(0, 1),
    "vae": a_text,
    "networks": a_boolean,
    "exact": a_boolean,
    "samples_format": one_of(("png", "jpg", "jpeg", "webp")),
    "jpeg_quality": whole(1, 100),
    "webp_lossless": a_boolean,
    "refiner": group(Refiner, {"checkpoint": named_weights, "switch_at": real(0, 1)}),
    "hires": group(Hires, HIRES_CHECKS),
    "img2img": several(group(Img2Img, IMG2IMG_CHECKS), settings.MAX_BATCH_SIZE),
    "settings": group(Settings, SETTING_CHECKS),
    "extras": group(ExtrasRecipe, EXTRAS_CHECKS),
    "notes": dict,
    "control": numbered(group(ControlUnit, CONTROL_CHECKS), MOST_UNITS),
    "strict_control": a_boolean,
    "detect": several(group(DetectRecipe, DETECT_CHECKS), settings.MAX_BATCH_SIZE),
    "more_pictures": several(an_input, settings.MAX_BATCH_SIZE),
    "texts": several(group(Texts, dict.fromkeys(TEXT_FIELDS, a_text)), settings.MAX_IMAGES_PER_JOB),
    "seeds": several(whole(*SEED_RANGE), settings.MAX_IMAGES_PER_JOB),
    "safety": one_of(MODES),
}
assert set(CHECKS) == {field.name for field in fields(RenderRequest)}
