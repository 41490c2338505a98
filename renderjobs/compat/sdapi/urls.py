"""`/sdapi/v1/…`; a known path with a slash at its end is sent to the one without."""

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
    "scripts": views.no_scripts,
    "script-info": views.nothing_yet,
    "refresh-checkpoints": views.refresh,
    "refresh-embeddings": views.refresh,
    "refresh-vae": views.refresh,
    "refresh-loras": views.refresh,
}
urlpatterns = [path(name, view) for name, view in ROUTES.items()]
urlpatterns += [path(f"{name}/", views.without_slash) for name in ROUTES]
