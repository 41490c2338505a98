"""What an answer of a generation says beside its parameters: the ``info`` object, and which files are shown in which order."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from gpuworker.contract import Recipe
from gpuworker.contract.outcome import CONTROL_MAP
from renderjobs.choices import ImageState
from renderjobs.compat.sdapi.infotext import INPAINTING, VERSION, extra_parameters_of
from renderjobs.expansion import recipe_from
from renderjobs.models import RenderImage, RenderJob
from renderjobs.request import RenderRequest


def delivered_images(job: RenderJob) -> list[RenderImage]:
    delivered = job.images.filter(state=ImageState.DELIVERED).order_by("index")
    return list(delivered.prefetch_related("attachments"))


def files_of(images: list[RenderImage]) -> list[tuple[str, int]]:
    """In A1111's order: every picture followed by its masks, then the control maps, which all images share."""
    files = []
    for image in images:
        files.append((image.file_key, image.size_bytes))
        files += [(one.file_key, one.size_bytes) for one in image.attachments.all() if one.role != CONTROL_MAP]
    maps = images[0].attachments.all() if images else ()
    return files + [(one.file_key, one.size_bytes) for one in maps if one.role == CONTROL_MAP]


def info_of(job: RenderJob, images: list[RenderImage], values: dict[str, Any], *, with_grid: bool) -> dict[str, Any]:
    """The ``info`` object, keys in A1111's order. Prompts and seeds are listed for all images asked for."""
    request = RenderRequest.from_json(job.request)
    texts = [request.of_image(index) for index in range(job.images_total)]
    seeds = list(job.images.order_by("index").values_list("seed", "subseed"))
    recipe = recipe_from(job.lock)
    assert isinstance(recipe, Recipe)
    checkpoint, vae = recipe.checkpoint, recipe.vae
    infotexts = [image.infotext for image in images]
    if with_grid:
        infotexts.insert(0, infotexts[0])
    return info_of_request(request, values, job.created_at) | {
        "prompt": texts[0].prompt,
        "all_prompts": [own.prompt for own in texts],
        "negative_prompt": texts[0].negative_prompt,
        "all_negative_prompts": [own.negative_prompt for own in texts],
        "seed": seeds[0][0],
        "all_seeds": [seed for seed, _ in seeds],
        "subseed": seeds[0][1],
        "all_subseeds": [subseed for _, subseed in seeds],
        "restore_faces": False,
        "sd_model_name": checkpoint.name,
        "sd_model_hash": checkpoint.short_hash,
        "sd_vae_name": f"{vae.name}.safetensors" if vae else None,
        "sd_vae_hash": vae.short_hash if vae else None,
        "extra_generation_params": extra_parameters_of(recipe),
        "index_of_first_image": int(with_grid),
        "infotexts": infotexts,
        "is_using_inpainting_conditioning": checkpoint.input_channels == INPAINTING,
    }


def info_of_request(request: RenderRequest, values: dict[str, Any], created_at: datetime) -> dict[str, Any]:
    """What can be said of a request of which nothing was drawn."""
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt],
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt],
        "seed": -1,
        "all_seeds": [-1],
        "subseed": -1,
        "all_subseeds": [-1],
        "subseed_strength": values["subseed_strength"] or 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": request.sampler,
        "cfg_scale": float(request.cfg_scale),
        "steps": request.steps,
        "batch_size": request.batch_size,
        "restore_faces": None,
        "face_restoration_model": None,
        "sd_model_name": None,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": request.seed_resize_from_w,
        "seed_resize_from_h": request.seed_resize_from_h,
        "denoising_strength": values["denoising_strength"],
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [],
        "styles": values["styles"] or [],
        "job_timestamp": f"{created_at:%Y%m%d%H%M%S}",
        "clip_skip": request.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": VERSION,
    }
