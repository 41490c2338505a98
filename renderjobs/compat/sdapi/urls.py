"""`/sdapi/v1/…`, `/controlnet/…` and what A1111's own page asks; a slash at the end of a known path is sent away."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from django.http.response import HttpResponseBase
from django.urls import Resolver404, path, resolve

from common.document_pages import DocumentPage
from renderjobs.compat.sdapi import agent_scheduler, internal, views
from renderjobs.compat.sdapi.openapi import openapi_json

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
    "server-kill": views.server_control,
    "server-restart": views.server_control,
    "server-stop": views.server_control,
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
INTERNAL_ROUTES = {
    "progress": internal.progress,
    "pending-tasks": internal.pending,
    "ping": internal.ping,
    "quicksettings-hint": internal.quicksettings_hint,
    "profile-startup": internal.profile_startup,
    "sysinfo": internal.sysinfo,
    "sysinfo-download": internal.sysinfo_download,
}
CARD_ROUTES = {
    "metadata": internal.card_metadata,
    "get-single-card": internal.single_card,
    "thumb": internal.card_picture,
    "cover-images": internal.cover_images,
}
TASK_ROUTES = {
    "": agent_scheduler.task,
    "/position": agent_scheduler.position,
    "/run": agent_scheduler.shared_queue,
    "/requeue": agent_scheduler.requeue_one,
    "/move/<str:over_id>": agent_scheduler.shared_queue,
    "/bookmark": agent_scheduler.no_notes,
    "/unbookmark": agent_scheduler.no_notes,
    "/rename": agent_scheduler.no_notes,
    "/results": agent_scheduler.results,
}
OLD_TASK_ROUTES = {
    "run": agent_scheduler.shared_queue,
    "requeue": agent_scheduler.requeue_one,
    "delete": agent_scheduler.delete,
    "bookmark": agent_scheduler.no_notes,
    "unbookmark": agent_scheduler.no_notes,
    "rename": agent_scheduler.no_notes,
    "results": agent_scheduler.results,
}
SCHEDULER_ROUTES = {
    "samplers": agent_scheduler.samplers,
    "sd-models": agent_scheduler.sd_models,
    "queue/txt2img": agent_scheduler.queue_txt2img,
    "queue/img2img": agent_scheduler.queue_img2img,
    "queue": agent_scheduler.queue_state,
    "queue/pause": agent_scheduler.shared_queue,
    "queue/resume": agent_scheduler.shared_queue,
    "queue/clear": agent_scheduler.clear,
    "pause": agent_scheduler.shared_queue,
    "resume": agent_scheduler.shared_queue,
    "history": agent_scheduler.history,
    "history/clear": agent_scheduler.clear_history,
    "task/requeue-failed": agent_scheduler.requeue_all,
    **{f"task/<str:task_id>{name}": view for name, view in TASK_ROUTES.items()},
    **{f"{name}/<str:task_id>": view for name, view in OLD_TASK_ROUTES.items()},
    "move/<str:task_id>/<str:over_id>": agent_scheduler.shared_queue,
}
PREFIXES = {
    "sdapi/v1": ROUTES,
    "controlnet": CONTROLNET_ROUTES,
    "internal": INTERNAL_ROUTES,
    "sd_extra_networks": CARD_ROUTES,
    "agent-scheduler/v1": SCHEDULER_ROUTES,
}
urlpatterns = [
    path(f"{prefix}/{name}{slash}", views.without_slash if slash else view)
    for prefix, routes in PREFIXES.items()
    for name, view in routes.items()
    for slash in ("", "/")
] + [
    path("openapi.json", openapi_json, name="sdapi-document"),
    path("docs", DocumentPage.as_view(url_name="sdapi-document")),
]


def call_of(address: str) -> Callable[..., Awaitable[HttpResponseBase]] | None:
    """What answers a call of this path, for requests that come by other ways than the URL; None where nothing does."""
    if address.endswith("/") or not address.startswith(tuple(f"/{prefix}/" for prefix in PREFIXES)):
        return None
    try:
        found = resolve(address, urlconf=__name__)
    except Resolver404:
        return None
    return partial(found.func, **found.kwargs)
