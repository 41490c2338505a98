"""`/sdapi/v1/…` and `/controlnet/…`; a known path with a slash at its end is sent to the one without."""

from __future__ import annotations

from django.urls import path

from renderjobs.compat.sdapi import views

ROUTES = {
    "txt2img": views.txt2img,
    "img2img": views.img2img,
    "png-info": views.png_info,
    "extra-single-image": views.extra_single_image,
    "extra-batch-images": views.extra_batch_images,
    "progress": views.progress,
    "interrupt": views.interrupt,
    "skip": views.skip,
    "options": views.options,
    "sd-models": views.sd_models,
    "samplers": views.samplers,
    "schedulers": views.schedulers,
    "upscalers": views.upscalers,
    "latent-upscale-modes": views.latent_upscale_modes,
    "sd-vae": views.sd_vae,
    "hypernetworks": views.hypernetworks,
    "face-restorers": views.face_restorers,
    "loras": views.loras,
    "prompt-styles": views.prompt_styles,
    "embeddings": views.embeddings,
    "scripts": views.scripts,
    "script-info": views.script_info,
    "realesrgan-models": views.nothing,
    "extensions": views.nothing,
    "memory": views.memory,
    "cmd-flags": views.cmd_flags,
    "interrogate": views.interrogate,
    "unload-checkpoint": views.models_stay,
    "reload-checkpoint": views.models_stay,
    "create/embedding": views.training,
    "create/hypernetwork": views.training,
    "train/embedding": views.training,
    "train/hypernetwork": views.training,
    "refresh-checkpoints": views.refresh,
    "refresh-embeddings": views.refresh,
    "refresh-vae": views.refresh,
    "refresh-loras": views.refresh,
}
CONTROLNET_ROUTES = {
    "version": views.controlnet_version,
    "settings": views.controlnet_settings,
    "model_list": views.model_list,
    "module_list": views.module_list,
    "control_types": views.control_types,
    "detect": views.detect,
    "render_openpose_json": views.render_openpose_json,
}
urlpatterns = [
    path(f"{prefix}/{name}{slash}", views.without_slash if slash else view)
    for prefix, routes in (("sdapi/v1", ROUTES), ("controlnet", CONTROLNET_ROUTES))
    for name, view in routes.items()
    for slash in ("", "/")
]
