"""A1111's fields → the canonical RenderRequest. Pure. What would change the picture and is not supported is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from common.pictures import UnreadablePictureError
from gpuworker.contract import SETTINGS
from gpuworker.contract.extras import CODEFORMER, FACES_MISSING
from gpuworker.contract.samplers import resolve_sampler
from renderjobs.choices import JobKind
from renderjobs.compat.pai.wire import IMAGE_LINK, additions_of
from renderjobs.compat.pai.wire import NAMES as ADDITIONS
from renderjobs.compat.sdapi.control_units import DEFAULT_UNITS, NO_MAPS, names_of, places_of, units_of
from renderjobs.compat.sdapi.control_units import OPTIONS as CONTROLNET_OPTIONS
from renderjobs.compat.sdapi.errors import HandlerError, WireError, field_detail
from renderjobs.inputs import Upload, picture_from_text
from renderjobs.request import RenderRequest

SAME_NAME = (
    "seed", "subseed", "subseed_strength", "seed_resize_from_w", "seed_resize_from_h", "batch_size", "n_iter", "steps",
    "cfg_scale", "width", "height", "tiling", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise",
)  # fmt: skip
OPTIONS = {
    "sd_model_checkpoint": "checkpoint",
    "CLIP_stop_at_last_layers": "clip_skip",
    "eta_noise_seed_delta": "ensd",
    "emphasis": "emphasis",
    "tiling": "tiling",
    "samples_format": "samples_format",
    "jpeg_quality": "jpeg_quality",
    "webp_lossless": "webp_lossless",
}
"""Options of ``override_settings`` that are fields of a request → canonical names. ``SETTINGS`` take part as they are."""
WITHOUT_EFFECT = re.compile(
    r"samples_save|grid_save|save_|return_grid|outdir_|directories_|live_preview|show_progress|do_not_show|"
    r"grid_only_if_multiple|grid_save_to_dirs|grid_extended_filename|add_.*_to_info|enable_pnginfo|"
    r"sd_checkpoint_cache|sd_checkpoints_|persistent_cond_cache|face_restoration|code_former_weight|batch_cond_uncond|disable_weights_auto_swap|"
    r"use_scale_latent|export_for_4chan|samples_log|samples_filename|multiple_tqdm|initial_noise_multiplier$|"
    r"enable_batch_seeds|upcast_attn|lora_functional|extra_networks_default_multiplier"
)
"""Options about A1111's own files, pages or speed, those of the contact sheet that the answer honours, those of faces where none
are restored, one that A1111 reads before it is set, one that nothing reads, ways to compute the same in other orders, and the
number of network tags that options add, which is read with them."""
OF_THE_GRID = re.compile(r"n_rows|grid_")
"""Options of the contact sheet's looks: without effect unless one is asked for."""
NETWORK_OPTIONS = {"sd_hypernetwork": "hypernet", "sd_lora": "lora"}
"""Options that put a network tag behind every prompt → the tag's type."""
MULTIPLIER = "extra_networks_default_multiplier"
"""The option with the number of those tags."""
OLD_PIXELS, OLD_STEP = 512 * 512, 64
"""Of the first pass under ``use_old_hires_fix_width_height``: pixels, and what its sides are multiples of."""
COMMENT_LINE = re.compile(r"(^|\n)#[^\n]*(\n|$)")
COMMENT_TAIL = re.compile(r"#[^\n]*(\n|$)")
INERT_SCRIPTS = ("refiner", "sampler", "seed", "extra options", "hypertile", "comments")
"""Always-on scripts of A1111 whose arguments do nothing in a call: request fields say the same."""
DYNAMIC_PROMPTS = re.compile(r"dynamic prompts(?: v[\d.]+)?")
"""What our always-on script of that name is called by; the extension's name carries its version."""
CONTROLNET, SOFT_INPAINTING = "controlnet", "soft inpainting"
SOFT_FIELDS = ("power", "scale", "detail", "mask_influence", "difference_threshold", "difference_contrast")
AUTOMATIC_VAE = (None, "", "Automatic", "None")


@dataclass(slots=True)
class Translation:
    """A request and the pictures it was sent with."""

    canonical: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Canonical name → the name the caller used."""
    uploads: list[Upload] = field(default_factory=list)
    network_tags: dict[str, str] = field(default_factory=dict)
    """What options put behind every prompt: how a tag begins that stands for it → the tag."""

    def build(self) -> RenderRequest:
        """Raises: InvalidRequestError: A value is out of range."""
        return RenderRequest.build(self.canonical, names=self.names)

    def picture(self, text: str) -> Any:
        """Raises: HandlerError: It is none."""
        try:
            upload = picture_from_text(text)
        except UnreadablePictureError as error:
            raise HandlerError(500, str(error)) from error
        self.uploads.append(upload)
        return upload.picture


def to_request(values: Mapping[str, Any], *, options: Mapping[str, Any], kind: str = JobKind.TXT2IMG) -> Translation:
    """Begin the canonical request of a generation.

    Args:
        values: All fields of ``wire.TXT2IMG`` or ``wire.IMG2IMG`` and ``wire.OURS``, coerced.
        options: Every option this door knows, with its default.
    Raises:
        WireError: A feature that this version does not have is asked for.
        HandlerError: An unknown option or script, or a picture that is none, as A1111 answers it.
    """
    refuse_unsupported(values)
    made = Translation({"kind": kind}, {name: name for name in SAME_NAME})
    # A null means the default, where A1111 would answer 500.
    made.canonical |= {name: values[name] for name in SAME_NAME if values[name] is not None}
    made.canonical["denoising_strength"] = values["denoising_strength"]
    made.canonical["networks"] = not values["disable_extra_networks"]
    made.canonical["prompt"], made.canonical["negative_prompt"] = (
        without_comments(values[name] or "") for name in ("prompt", "negative_prompt")
    )
    settings: dict[str, Any] = {}
    overrides = values["override_settings"] or {}
    apply_options(overrides, options, made, settings, values)
    additions = additions_of(values["alwayson_scripts"])
    apply_options(additions.options, options, made, settings, values, "alwayson_scripts")
    if values["s_min_uncond"] is not None:
        settings["s_min_uncond"] = values["s_min_uncond"]
    made.canonical["settings"] = settings
    if checkpoint := values["sd_model_checkpoint"]:
        made.canonical["checkpoint"], made.names["checkpoint"] = checkpoint, "sd_model_checkpoint"
    resolved = resolve_sampler(values["sampler_name"] or values["sampler_index"], values["scheduler"])
    made.canonical["sampler"], made.canonical["schedule"] = resolved.sampler.name, resolved.schedule.label
    if made.canonical.get("eta") is None:
        option = "eta_ancestral" if resolved.sampler.uses_sigmas else "eta_ddim"
        made.canonical["eta"], made.names["eta"] = overrides.get(option), f"override_settings.{option}"
    if values["refiner_checkpoint"] not in (None, "", "None", "none"):
        made.canonical["refiner"] = {
            "checkpoint": values["refiner_checkpoint"],
            "switch_at": values["refiner_switch_at"],
        }
        made.names |= {"refiner.checkpoint": "refiner_checkpoint", "refiner.switch_at": "refiner_switch_at"}
    if kind == JobKind.TXT2IMG:
        add_hires(made, values)
    else:
        add_pictures(made, values)
    units = arguments_of(scripts_of(values).get(CONTROLNET))
    made.canonical["control"] = units_of(units, made.picture, save_maps=not overrides.get(NO_MAPS), most=DEFAULT_UNITS)
    made.names |= names_of_units(units)
    return made


def names_of_units(units: list[Any]) -> dict[str, str]:
    """Fields of the canonical units → where they were sent."""
    return names_of(places_of(units, most=DEFAULT_UNITS), f"alwayson_scripts.{CONTROLNET}.args")


def add_hires(made: Translation, values: Mapping[str, Any]) -> None:
    if values["firstphase_width"] or values["firstphase_height"]:
        # Of an older contract: width and height are the finished picture's.
        made.canonical |= {"width": values["firstphase_width"], "height": values["firstphase_height"]}
    if not values["enable_hr"]:
        # Without a second pass there is nothing to denoise by a strength.
        made.canonical["denoising_strength"] = None
        return
    fields = {
        "scale": "hr_scale",
        "resize_x": "hr_resize_x",
        "resize_y": "hr_resize_y",
        "upscaler": "hr_upscaler",
        "steps": "hr_second_pass_steps",
        "sampler": "hr_sampler_name",
        "schedule": "hr_scheduler",
        "prompt": "hr_prompt",
        "negative_prompt": "hr_negative_prompt",
        "checkpoint": "hr_checkpoint_name",
    }
    hires = {name: values[wire] for name, wire in fields.items()}
    if values["firstphase_width"] or values["firstphase_height"]:
        hires |= {"resize_x": values["width"], "resize_y": values["height"]}
    if made.canonical["settings"].get("use_old_hires_fix_width_height"):
        width, height = made.canonical["width"], made.canonical["height"]
        hires |= {"resize_x": width, "resize_y": height}
        made.canonical["width"], made.canonical["height"] = old_first_pass(width, height)
    for name in ("sampler", "schedule", "checkpoint"):
        # The labels of A1111's page mean what null means.
        hires[name] = None if hires[name] in ("", None) or hires[name].startswith("Use same") else hires[name]
    for name in ("prompt", "negative_prompt"):
        hires[name] = without_comments(hires[name] or "")
    if hires["prompt"]:
        hires["prompt"] = with_networks(hires["prompt"], made.network_tags)
    made.canonical["hires"] = hires
    made.names |= {f"hires.{name}": wire for name, wire in fields.items()}


def old_first_pass(width: int, height: int) -> tuple[int, int]:
    """Sides of the first pass where width and height are the finished picture's: its shape, as many pixels as the networks were
    trained on, whole multiples of 64."""
    factor = math.sqrt(OLD_PIXELS / max(1, width * height))
    return math.ceil(factor * width / OLD_STEP) * OLD_STEP, math.ceil(factor * height / OLD_STEP) * OLD_STEP


def add_pictures(made: Translation, values: Mapping[str, Any]) -> None:
    """Raises: HandlerError: No picture to begin from."""
    if values["init_images"] is None:
        raise HandlerError(404, "Init image not found")
    if not values["init_images"]:
        raise HandlerError(500, "bad number of images passed: 0; expecting 1 or more", error="RuntimeError")
    pictures = [made.picture(text) for text in values["init_images"]]
    if len(pictures) > 1:
        if len(pictures) > (values["batch_size"] or 1):
            message = f"bad number of images passed: {len(pictures)}; expecting {values['batch_size']} or less"
            raise HandlerError(500, message, error="RuntimeError")
        made.canonical["batch_size"] = len(pictures)
    inpaint = inpainting(made, values) if values["mask"] else None
    made.canonical["img2img"] = [
        {
            "picture": picture,
            "resize_mode": values["resize_mode"],
            "inpaint": inpaint,
            "image_cfg_scale": values["image_cfg_scale"],
            "noise_multiplier": values["initial_noise_multiplier"],
        }
        for picture in pictures
    ]
    made.names |= {"img2img.noise_multiplier": "initial_noise_multiplier"}


def inpainting(made: Translation, values: Mapping[str, Any]) -> dict[str, Any]:
    both = values["mask_blur"]
    return {
        "mask": made.picture(values["mask"]),
        "blur_x": values["mask_blur_x"] if both is None else both,
        "blur_y": values["mask_blur_y"] if both is None else both,
        "round": values["mask_round"],
        "fill": values["inpainting_fill"],
        "full_res": values["inpaint_full_res"],
        "padding": values["inpaint_full_res_padding"],
        "invert": bool(values["inpainting_mask_invert"]),
        "soft": soft_inpainting(scripts_of(values).get(SOFT_INPAINTING)),
    }


def soft_inpainting(script: Any) -> dict[str, Any] | None:
    arguments = arguments_of(script)
    if not arguments or not arguments[0]:
        return None
    return {name: float(value) for name, value in zip(SOFT_FIELDS, arguments[1:], strict=False)}


def scripts_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Always-on scripts by their name in lower case, as A1111 finds them."""
    return {str(name).lower(): script for name, script in values["alwayson_scripts"].items()}


def arguments_of(script: Any) -> list[Any]:
    """Raises: WireError: They are something else than a list; passing them over would pass over what was asked for."""
    arguments = script.get("args") if isinstance(script, Mapping) else None
    if arguments and not isinstance(arguments, list):
        raise WireError(field_detail("alwayson_scripts", "the args of a script are a list", "type_error.list"))
    return arguments or []


def apply_options(
    overrides: Mapping[str, Any],
    options: Mapping[str, Any],
    made: Translation,
    settings: dict[str, Any],
    values: Mapping[str, Any],
    where: str = "override_settings",
) -> None:
    """Put options into the request; a field of the request itself wins over the option of its name."""
    for option, value in overrides.items():
        place = f"{where}.{option}"
        if option in CONTROLNET_OPTIONS:
            continue  # read where the units are
        if option not in options and option not in SETTINGS:
            raise HandlerError(500, repr(option), error="KeyError")
        if name := OPTIONS.get(option):
            if values.get(option) is None and value is not None:
                made.canonical[name], made.names[name] = as_type_of(value, options[option]), place
        elif option in SETTINGS:
            settings[option] = as_type_of("None" if value is None else value, SETTINGS[option])
            made.names[f"settings.{option}"] = place
        elif option == "sd_vae":
            made.canonical["vae"] = "" if value in AUTOMATIC_VAE else value
        elif option in NETWORK_OPTIONS:
            add_network(made, NETWORK_OPTIONS[option], value, {**options, **overrides}[MULTIPLIER])
        elif option in ("eta_ancestral", "eta_ddim"):
            continue  # read where the sampler is known
        elif not without_effect(option, value, options, values):
            message = f"Option {option!r} with the value {value!r} is not supported by this version."
            raise WireError(field_detail(place, message, "value_error.unsupported"))


def add_network(made: Translation, kind: str, name: Any, multiplier: Any) -> None:
    if name not in (None, "", "None"):
        made.network_tags[f"<{kind}:{name}"] = f"<{kind}:{name}:{multiplier}>"
        made.canonical["prompt"] = with_networks(made.canonical["prompt"], made.network_tags)


def with_networks(prompt: str, tags: Mapping[str, str]) -> str:
    """A prompt with the tags of the networks that it does not name itself."""
    return prompt + "".join(tag for begin, tag in tags.items() if begin not in prompt)


def without_effect(option: str, value: Any, options: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether the answer is the same with and without this option."""
    if value is None or value == options[option]:
        return True
    no_grid = not values["save_images"] and OF_THE_GRID.match(option)
    return bool(WITHOUT_EFFECT.match(option) or no_grid)


def as_type_of(value: Any, default: Any) -> Any:
    """``"2"`` and 2.0 for a numeric option are meant as 2."""
    if isinstance(default, bool):
        return bool(value) if isinstance(value, int | float) else value
    if isinstance(value, str) and isinstance(default, int | float):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def refuse_unsupported(values: Mapping[str, Any]) -> None:
    additions = additions_of(values["alwayson_scripts"])
    known = (*ADDITIONS, *INERT_SCRIPTS, CONTROLNET, SOFT_INPAINTING)
    for name in scripts_of(values):
        if name == "":
            raise HandlerError(422, "always on script  not found")
        if name not in known and not DYNAMIC_PROMPTS.fullmatch(name):
            raise HandlerError(422, f"Script '{name}' not found")
    if wants_faces_restored(values) and not additions.any:
        # Passing it over would give another picture than was asked for. Clients of hosted webuis send it in every call, as the
        # documents print it: to them the header of ignored fields says so.
        options = values["override_settings"] or {}
        raise HandlerError(501, FACES_MISSING.format(options.get("face_restoration_model") or CODEFORMER))


def wants_faces_restored(values: Mapping[str, Any]) -> bool:
    chosen = values["restore_faces"]
    return bool((values["override_settings"] or {}).get("face_restoration") if chosen is None else chosen)


def ignored_fields(body: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """What was sent and has no effect, for the caller to see."""
    unknown = [name for name in body if name not in values]
    unknown += ["restore_faces"] if wants_faces_restored(values) else []
    # Of the additions, only txt2img has no use for a picture to begin from.
    if "init_images" not in values and additions_of(values["alwayson_scripts"]).image_link:
        unknown.append(f"alwayson_scripts.{IMAGE_LINK}")
    return unknown


def grid_wanted(values: Mapping[str, Any], options: Mapping[str, Any], images: int) -> bool:
    """Whether A1111 would put its contact sheet before the pictures."""
    chosen = {**options, **(values["override_settings"] or {})}
    enough = images > 1 or (images == 1 and not chosen["grid_only_if_multiple"])
    return bool(values["save_images"] and chosen["return_grid"] and enough)


def without_comments(prompt: str) -> str:
    """A ``#`` begins a comment to the end of the line.

    Source: ``strip_comments``, stable-diffusion-webui 1.10.1 ``modules/processing_scripts/comments.py``.
    """
    return COMMENT_TAIL.sub("\n", COMMENT_LINE.sub("\n", prompt))
