"""`/sdapi/v1/…`; a known path with a slash at its end is sent to the one without."""

from __future__ import annotations

from django.urls import path

from renderjobs.compat.sdapi import views

ROUTES = {
    "txt2img": views.txt2img,
    "progress": views.progress,
    "interrupt": views.interrupt,
    "skip": views.skip,
    "options": views.options,
    "sd-models": views.sd_models,
    "samplers": views.samplers,
    "schedulers": views.schedulers,
    "upscalers": views.upscalers,
    "latent-upscale-modes": views.latent_upscale_modes,
    "sd-vae": views.nothing_yet,
    "hypernetworks": views.nothing_yet,
    "face-restorers": views.nothing_yet,
    "loras": views.nothing_yet,
    "prompt-styles": views.nothing_yet,
    "embeddings": views.no_embeddings,
    "scripts": views.no_scripts,
    "script-info": views.nothing_yet,
    "refresh-checkpoints": views.refresh,
}
urlpatterns = [path(name, view) for name, view in ROUTES.items()]
urlpatterns += [path(f"{name}/", views.without_slash) for name in ROUTES]
