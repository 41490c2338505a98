"""`/sdapi/v1/…`"""

from __future__ import annotations

from django.urls import path

from renderjobs.compat.sdapi import views

urlpatterns = [
    path("txt2img", views.txt2img),
    path("progress", views.progress),
    path("interrupt", views.interrupt),
    path("options", views.options),
    path("sd-models", views.sd_models),
    path("samplers", views.samplers),
    path("schedulers", views.schedulers),
    path("upscalers", views.upscalers),
    path("latent-upscale-modes", views.latent_upscale_modes),
    path("sd-vae", views.nothing_yet),
    path("hypernetworks", views.nothing_yet),
    path("face-restorers", views.nothing_yet),
    path("loras", views.nothing_yet),
    path("prompt-styles", views.nothing_yet),
    path("embeddings", views.no_embeddings),
]
