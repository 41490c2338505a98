"""The recorded answers of A1111 that lie beside the project: where they are, and a recorded case as a spec. No test lives here.

The requests are turned into recipes here once more, without the product's own doors, so that the engine is measured by itself and
without Django. Selectable scripts are no part of it: those are requests for many recipes.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import importlib.util
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gpuworker.contract import (
    SETTINGS,
    ControlUnit,
    EmbeddingUse,
    Hires,
    Img2Img,
    Inpaint,
    InputPicture,
    NetworkUse,
    Picture,
    Recipe,
    Refiner,
    RenderSpec,
    Settings,
    SoftInpainting,
    Weights,
    WeightsFile,
)
from gpuworker.contract.control_modules import BY_NAME
from gpuworker.contract.prompts import embedding_names_in, network_tags, strip_network_tags
from gpuworker.contract.samplers import resolve_sampler

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
A1111 = REFERENCE / "a1111"
MORE = REFERENCE / "a1111-more"
BASE_CHECKPOINT = REFERENCE / "tiny-sd15" / "tiny-sd15.safetensors"

needs_recordings = pytest.mark.skipif(not A1111.is_dir(), reason="The recordings of A1111 are not beside the project.")

RECIPE_OPTIONS = {
    "CLIP_stop_at_last_layers": "clip_skip",
    "emphasis": "emphasis",
    "eta_noise_seed_delta": "ensd",
}
"""A1111's options that are fields of a recipe."""
RECIPE_FIELDS = (
    "subseed_strength", "seed_resize_from_w", "seed_resize_from_h", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "tiling",
    "denoising_strength",
)  # fmt: skip
NETWORK_TAG = re.compile(r"<(lora|lyco|hypernet):([^:>]+)((?::[^>]*)?)>")


def internals(name: str) -> Any:
    return json.loads((A1111 / "internals" / name).read_text())


def numbers(name: str) -> Any:
    return np.load(A1111 / "internals" / name)


# --- files -----------------------------------------------------------------------------------------------------------


@cache
def scratch() -> Path:
    """A folder of this process's own, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="renderkiln-recordings-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def checkpoint_path(stem: str) -> Path:
    """The checkpoint of that name; one that lies there in part is put together first. Its YAML lies beside it."""
    whole = REFERENCE / "tiny-sd15" / f"{stem}.safetensors"
    if whole.is_file():
        return whole
    (part,) = REFERENCE.glob(f"tiny-*/{stem}.part.safetensors")
    target = scratch() / f"{stem}.safetensors"
    _compose().compose(str(BASE_CHECKPOINT), str(part), str(target))
    for neighbour in (part.with_name(f"{stem}.yaml"), part.with_name("tiny-open-clip.json")):
        if neighbour.is_file():
            shutil.copy(neighbour, scratch() / neighbour.name)
    return target


@cache
def _compose() -> Any:
    found = importlib.util.spec_from_file_location("compose", REFERENCE / "compose.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@cache
def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def weights_path(stem: str) -> Path | None:
    """A LoRA, embedding, hypernetwork, ControlNet, upscaler or VAE of that name, as safetensors."""
    for pattern in (f"tiny-*/{stem}.safetensors", f"tiny-*/*/{stem}.safetensors"):
        for path in REFERENCE.glob(pattern):
            return path
    for path in REFERENCE.glob(f"tiny-*/{stem}.pt*"):
        return converted(path)
    return None


def converted(path: Path) -> Path:
    """A pickled file of tensors as the product's intake converts it."""
    from assets.conversion import convert

    target = scratch() / f"{path.stem}.safetensors"
    if not target.is_file():
        convert(path, target)
    return target


def weights_of(path: Path) -> Weights:
    return Weights(name=path.stem, sha256=sha256_of(path))


INPUT_CHANNELS = {"tiny-sd15-inpainting": 9, "tiny-instruct-pix2pix": 8}


def checkpoint_weights(name: str) -> Weights:
    return replace(weights_of(checkpoint_path(name)), input_channels=INPUT_CHANNELS.get(name, 4))


def shown_hash(kind: str, path: Path) -> str:
    """The digits infotexts show, as the product's intake computes them."""
    from assets.listing import listed_hash
    from assets.scanning import header_read

    with path.open("rb") as file:
        header = header_read(file, size_bytes=path.stat().st_size)
        return listed_hash(kind, file, sha256=sha256_of(path), metadata=header.metadata)


# --- cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A recorded request as a spec, and the pictures it was answered with."""

    spec: RenderSpec
    body: dict[str, Any]
    info: dict[str, Any]
    pictures: list[np.ndarray]
    """Of the recipes, in their order; int16, shape (height, width, channels) or (height, width)."""
    others: list[np.ndarray]
    """Masks that came along, in their order."""


def case_folder(group: str, name: str) -> Path:
    return (A1111 if group == "a1111" else MORE / group) / "cases" / name


def case_of(group: str, name: str) -> Case:
    """A case of a generation request; ``group`` is ``a1111`` or a folder of ``a1111-more``."""
    folder = case_folder(group, name)
    body = json.loads((folder / "request.json").read_text())
    response = json.loads((folder / "response.json").read_text())
    info = json.loads(response["info"])
    inputs: dict[str, Path] = {}
    recipes = tuple(_recipes(body, info, inputs))
    files = {use.sha256: _file_of(use) for recipe in recipes for use in recipe.weights()}
    images = [_array(folder / name) for name in response["images"]][info["index_of_first_image"] :]
    each = (
        len(images) // len(recipes)
        if recipes[0].settings.return_mask or recipes[0].settings.return_mask_composite
        else 1
    )
    count = len(recipes) * each
    pictures = images[:count:each]
    others = [image for index, image in enumerate(images) if index >= count or index % each]
    return Case(RenderSpec(recipes, files, inputs), body, info, pictures, others)


def distance(case: Case, outcomes: list[Any]) -> int:
    """The largest difference of any value of any picture; 256 where a picture is missing or of another size."""
    worst = 0
    for outcome, recorded in zip(outcomes, case.pictures, strict=True):
        picture = getattr(outcome, "picture", None)
        if picture is None or (picture.height, picture.width) != recorded.shape[:2]:
            return 256
        found = array_of(picture).reshape(recorded.shape)
        worst = max(worst, int(np.abs(found - recorded).max()))
    return worst


def array_of(picture: Picture) -> np.ndarray:
    """int16, shape (height, width, channels)."""
    values = np.frombuffer(picture.pixels, np.uint8).astype(np.int16)
    return values.reshape(picture.height, picture.width, len(picture.mode))


def _array(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=np.int16)


def _file_of(use: Weights) -> WeightsFile:
    for path in (*scratch().glob(f"{use.name}.safetensors"), *REFERENCE.glob(f"tiny-*/**/{use.name}.safetensors")):
        if sha256_of(path) == use.sha256:
            config = path.with_suffix(".yaml")
            return WeightsFile(path, config if config.is_file() else None)
    raise LookupError(use.name)


def _recipes(body: dict[str, Any], info: dict[str, Any], inputs: dict[str, Path]) -> Iterator[Recipe]:
    options = dict(body.get("override_settings") or {})
    resolved = resolve_sampler(body.get("sampler_name") or "Euler", body.get("scheduler"))
    checkpoint = checkpoint_weights(options.get("sd_model_checkpoint", "tiny-sd15"))
    default_eta = options.get("eta_ancestral" if resolved.sampler.uses_sigmas else "eta_ddim")
    common: dict[str, Any] = {
        "eta": default_eta,
        **{field: body[field] for field in RECIPE_FIELDS if field in body},
        **{field: options[option] for option, field in RECIPE_OPTIONS.items() if option in options},
        "sampler": resolved.sampler.name,
        "schedule": resolved.schedule.label,
        "steps": body.get("steps", 50),
        "cfg_scale": float(body.get("cfg_scale", 7.0)),
        "width": body.get("width", 512),
        "height": body.get("height", 512),
        "checkpoint": checkpoint,
        "vae": _optional(str(options.get("sd_vae", "")).removesuffix(".safetensors")),
        "refiner": _refiner(body),
        "hires": _hires(body) if body.get("enable_hr") else None,
        "settings": replace(
            Settings(s_min_uncond=body.get("s_min_uncond") or 0.0),
            **{option: value for option, value in options.items() if option in SETTINGS},
        ),
    }
    pictures = [_input(text, inputs) for text in body.get("init_images") or ()]
    lists = (info["all_prompts"], info["all_negative_prompts"], info["all_seeds"], info["all_subseeds"])
    for index, (prompt, negative, seed, subseed) in enumerate(zip(*lists, strict=True)):
        yield Recipe(
            prompt=prompt,
            negative_prompt=negative,
            seed=seed,
            subseed=subseed,
            networks=networks_in(prompt),
            embeddings=tuple(_embeddings(f"{prompt} {negative} {body.get('hr_prompt', '')}", checkpoint)),
            img2img=_img2img(body, options, pictures[index % len(pictures)], inputs) if pictures else None,
            control=tuple(_units(body, options, inputs)),
            **common,
        )


def networks_in(prompt: str) -> tuple[NetworkUse, ...]:
    return tuple(use for match in NETWORK_TAG.finditer(prompt) if (use := _network(match)))


def _network(match: re.Match[str]) -> NetworkUse | None:
    path = weights_path(ALIASES.get(match[2], match[2]))
    if path is None:
        return None
    arguments = [part for part in match[3].split(":") if part]
    named = dict(part.split("=", 1) for part in arguments if "=" in part)
    positional = [part for part in arguments if "=" not in part]
    te = float(named.get("te", positional[0] if positional else 1.0))
    unet = float(named.get("unet", positional[1] if len(positional) > 1 else te))
    dyn = named.get("dyn", positional[2] if len(positional) > 2 else None)
    kind = "hypernet" if match[1] == "hypernet" else "lora"
    listed = shown_hash(kind, path) if kind == "lora" else ""
    return NetworkUse(
        kind=kind, weights=weights_of(path), te=te, unet=unet, dyn=int(dyn) if dyn else None, listed_hash=listed
    )


ALIASES: dict[str, str] = {}
"""Names a LoRA gives itself → stem."""


def _embeddings(text: str, checkpoint: Weights) -> Iterator[EmbeddingUse]:
    of_sdxl = checkpoint.name == "tiny-sdxl"
    for pattern in ("tiny-sdxl/zz*.safetensors",) if of_sdxl else ("tiny-sd15/embeddings/*.safetensors",):
        for path in sorted(REFERENCE.glob(pattern)):
            if re.search(rf"(?<!\w){path.stem}(?!\w)", text, re.IGNORECASE):
                yield EmbeddingUse(
                    weights=weights_of(path), listed_hash=shown_hash("embedding", path), encoders=1 + of_sdxl
                )
    for tag in network_tags(text):
        path = weights_path(ALIASES.get(tag.name, tag.name)) if tag.kind == "lora" else None
        for name in embedding_names_in(strip_network_tags(text), _embeddings_inside(path) if path else ()):
            weights = replace(weights_of(path), name=name)
            yield EmbeddingUse(weights=weights, listed_hash=tag.name, inside=tag.name)


def _embeddings_inside(path: Path) -> dict[str, int]:
    """As the product's intake finds them."""
    from assets.listing import embeddings_inside
    from assets.scanning import header_read

    with path.open("rb") as file:
        return embeddings_inside("lora", header_read(file, size_bytes=path.stat().st_size).shapes)


def _optional(stem: str) -> Weights | None:
    path = weights_path(stem) if stem and stem not in ("Automatic", "None") else None
    return weights_of(path) if path else None


def _refiner(body: dict[str, Any]) -> Refiner | None:
    name = body.get("refiner_checkpoint")
    return Refiner(checkpoint=checkpoint_weights(name), switch_at=body.get("refiner_switch_at")) if name else None


def _hires(body: dict[str, Any]) -> Hires:
    upscaler = body.get("hr_upscaler")
    schedule = body.get("hr_scheduler")
    prompt = body.get("hr_prompt", "")
    return Hires(
        scale=float(body.get("hr_scale", 2.0)),
        resize_x=body.get("hr_resize_x", 0),
        resize_y=body.get("hr_resize_y", 0),
        upscaler=upscaler,
        upscaler_weights=_optional(upscaler) if upscaler and upscaler.startswith("tiny") else None,
        steps=body.get("hr_second_pass_steps", 0),
        sampler=body.get("hr_sampler_name"),
        schedule=schedule,
        prompt=prompt,
        negative_prompt=body.get("hr_negative_prompt", ""),
        checkpoint=checkpoint_weights(body["hr_checkpoint_name"]) if body.get("hr_checkpoint_name") else None,
        networks=networks_in(prompt) if prompt else None,
    )


def _img2img(body: dict[str, Any], options: dict[str, Any], picture: InputPicture, inputs: dict[str, Path]) -> Img2Img:
    multiplier = body.get("initial_noise_multiplier")
    return Img2Img(
        picture=picture,
        resize_mode=body.get("resize_mode", 0),
        inpaint=_inpaint(body, inputs) if body.get("mask") else None,
        image_cfg_scale=body.get("image_cfg_scale"),
        noise_multiplier=1.0 if multiplier is None else multiplier,
        upscaler=_optional(options.get("upscaler_for_img2img", "")),
    )


def _units(body: dict[str, Any], options: dict[str, Any], inputs: dict[str, Path]) -> Iterator[ControlUnit]:
    scripts = {name.lower(): script for name, script in (body.get("alwayson_scripts") or {}).items()}
    for unit in scripts.get("controlnet", {}).get("args", []):
        if not unit.get("enabled"):
            continue
        module = BY_NAME[unit.get("module", "none")]
        numbers = (unit.get(name, -1) for name in ("processor_res", "threshold_a", "threshold_b"))
        resolution, a, b = module.values(
            *(number if index == 0 else float(number) for index, number in enumerate(numbers))
        )
        image = unit.get("image", unit.get("input_image"))
        image = image if isinstance(image, dict) else {"image": image, "mask": unit.get("mask", unit.get("mask_image"))}
        region = unit.get("effective_region_mask")
        model = unit.get("model", "None")
        path = weights_path(model.split(" [")[0].lower())
        yield ControlUnit(
            module=unit.get("module", "none"),
            model=model,
            weights=weights_of(path) if path else None,
            picture=_input(image["image"], inputs) if image["image"] else None,
            mask=_input(image["mask"], inputs) if image.get("mask") else None,
            effective_region_mask=_input(region, inputs) if region else None,
            weight=float(unit.get("weight", 1.0)),
            resize_mode=RESIZE_LABELS.get(unit.get("resize_mode", ""), unit.get("resize_mode", "Crop and Resize")),
            processor_res=resolution,
            threshold_a=a,
            threshold_b=b,
            guidance_start=float(unit.get("guidance_start", 0.0)),
            guidance_end=float(unit.get("guidance_end", unit.get("guidance", 1.0))),
            pixel_perfect=unit.get("pixel_perfect", False),
            control_mode=unit.get("control_mode", "Balanced"),
            hr_option=unit.get("hr_option", "Both"),
            inpaint_crop_input_image=unit.get("inpaint_crop_input_image", True),
            advanced_weighting=tuple(unit["advanced_weighting"]) if unit.get("advanced_weighting") else None,
            save_detected_map=unit.get("save_detected_map", True) and not options.get("control_net_no_detectmap"),
        )


RESIZE_LABELS = {"Scale to Fit (Inner Fit)": "Crop and Resize"}


def _inpaint(body: dict[str, Any], inputs: dict[str, Path]) -> Inpaint:
    both = body.get("mask_blur")
    soft = next(
        (script["args"] for name, script in (body.get("alwayson_scripts") or {}).items() if name == "soft inpainting"),
        None,
    )
    return Inpaint(
        mask=_input(body["mask"], inputs),
        blur_x=body.get("mask_blur_x", 4) if both is None else both,
        blur_y=body.get("mask_blur_y", 4) if both is None else both,
        round=body.get("mask_round", True),
        fill=body.get("inpainting_fill", 0),
        full_res=bool(body.get("inpaint_full_res", True)),
        padding=body.get("inpaint_full_res_padding", 0),
        invert=bool(body.get("inpainting_mask_invert", 0)),
        soft=SoftInpainting(**dict(zip(SOFT_FIELDS, soft[1:], strict=False))) if soft and soft[0] else None,
    )


SOFT_FIELDS = ("power", "scale", "detail", "mask_influence", "difference_threshold", "difference_contrast")


def _input(text: str, inputs: dict[str, Path]) -> InputPicture:
    data = base64.b64decode(text.split(",", 1)[-1])
    sha256 = hashlib.sha256(data).hexdigest()
    path = scratch() / sha256
    path.write_bytes(data)
    inputs[sha256] = path
    with Image.open(io.BytesIO(data)) as image:
        return InputPicture(sha256=sha256, width=image.width, height=image.height)
