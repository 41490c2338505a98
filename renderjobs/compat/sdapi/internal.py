"""What A1111's own page asks its server: `/internal/…` and the cards of extra networks. There anybody may ask; here callers only.

This server has no such page, so what only describes the page or the machine is answered empty.
"""

from __future__ import annotations

import json
from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse, JsonResponse

from accounts.authentication import Caller
from assets.models import AssetKind
from assets.previews import preview_content
from assets.selectors import asset_find
from renderjobs.compat.sdapi import wire
from renderjobs.compat.sdapi.door import authenticated, listing
from renderjobs.compat.sdapi.errors import HandlerError, speaks_sdapi
from renderjobs.compat.sdapi.infotext import VERSION
from renderjobs.compat.sdapi.profile import default_options
from renderjobs.compat.sdapi.progress import pending_tasks, task_progress

KIND_OF_PAGE = {
    "Lora": AssetKind.LORA,
    "checkpoints": AssetKind.CHECKPOINT,
    "hypernetworks": AssetKind.HYPERNETWORK,
    "textual inversion": AssetKind.EMBEDDING,
}


@speaks_sdapi("POST")
async def progress(request: HttpRequest) -> HttpResponse:
    """Progress of the task that the body names, with a preview the client does not have yet."""
    caller = await sync_to_async(authenticated)(request)
    values = wire.parsed(wire.body_of(request.body), wire.TASK_PROGRESS)
    found = await sync_to_async(task_progress)(
        caller,
        task_id=values["id_task"],
        seen_preview=values["id_live_preview"],
        preview=values["live_preview"],
    )
    return JsonResponse(found)


@speaks_sdapi("GET")
async def card_metadata(request: HttpRequest) -> HttpResponse:
    """A network's training metadata as an indented text, within an object."""
    caller = await sync_to_async(authenticated)(request)
    kind, item = KIND_OF_PAGE.get(request.GET.get("page", "")), request.GET.get("item", "")
    asset = await sync_to_async(asset_find)(caller, kind, item) if kind and item else None
    if asset is None or kind != AssetKind.LORA:
        return JsonResponse({})
    return JsonResponse({"metadata": json.dumps(asset.metadata, indent=4, ensure_ascii=False)})


@speaks_sdapi("GET")
async def card_picture(request: HttpRequest) -> HttpResponse:
    """A network's picture, by the name of its file as lists say it."""
    caller = await sync_to_async(authenticated)(request)
    content = await sync_to_async(_picture_of)(caller, request.GET.get("filename", ""))
    if content is None:
        raise HandlerError(404, "File not found")
    return HttpResponse(content, content_type="image/webp", headers={"X-Content-Type-Options": "nosniff"})


def _picture_of(caller: Caller, filename: str) -> bytes | None:
    for kind in KIND_OF_PAGE.values():
        asset = asset_find(caller, kind, filename)
        if asset is not None and asset.preview_key:
            return preview_content(asset)
    return None


@speaks_sdapi("GET")
async def cover_images(request: HttpRequest) -> HttpResponse:
    """Pictures inside safetensors files are taken out at their intake; none is left there to number."""
    await sync_to_async(authenticated)(request)
    raise HandlerError(404, "File not found")


@speaks_sdapi("GET")
async def sysinfo_download(request: HttpRequest) -> HttpResponse:
    await sync_to_async(authenticated)(request)
    headers = {"Content-Disposition": 'attachment; filename="sysinfo.json"'}
    return HttpResponse(json.dumps(system()), content_type="text/plain", headers=headers)


@speaks_sdapi("GET")
async def sysinfo(request: HttpRequest) -> HttpResponse:
    await sync_to_async(authenticated)(request)
    return HttpResponse(json.dumps(system()), content_type="text/plain")


def system() -> dict[str, Any]:
    """Nothing of the machine, which is not the caller's."""
    return {"Version": VERSION, "Extensions": [], "Inactive extensions": []}


def quicksettings(caller: Caller) -> list[dict[str, str]]:
    return [{"name": name, "label": name.replace("_", " ")} for name in default_options()]


ping = listing(lambda _: {})
pending = listing(pending_tasks)
quicksettings_hint = listing(quicksettings)
profile_startup = listing(lambda _: {"total": 0.0, "records": {}})
single_card = listing(lambda _: {})
