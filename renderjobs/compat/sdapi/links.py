"""URLs in place of pictures: fetched before anything is translated, so that a request is what it was when it came.

What is fetched is decided by ``common.fetching``; here is only where pictures stand in a body, and what A1111 says of them.

Source of the messages: ``decode_base64_to_image`` of ``modules/api/api.py``, A1111 1.10.1.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from common.fetching import FetchError, FetchForbiddenError, FetchPolicy, fetch, policy_installed
from renderjobs.compat.pai.wire import IMAGE_LINK
from renderjobs.compat.sdapi.errors import HandlerError

FIELDS = ("init_images", "mask", "image", "imageList", "controlnet_input_images", "controlnet_masks")
UNIT_FIELDS = ("image", "input_image", "mask", "mask_image", "effective_region_mask", "image_link")
PARTS = ("image", "mask", "data", "args")
"""Of a picture that is an object, the last as scripts have their values."""
MAX_LINKS = 16
FETCHES_AT_ONCE = 8
Pictures = Mapping[str, str]
"""URL → what it names, in base64."""


async def pictures_behind(values: Mapping[str, Any]) -> Pictures:
    """Fetch every picture of a request that is given by its address.

    Raises:
        HandlerError: One is not fetched here, or could not be fetched.
    """
    links = list(dict.fromkeys(links_in(values)))
    if not links:
        return {}
    if len(links) > MAX_LINKS:
        raise HandlerError(422, f"The request names {len(links)} addresses; at most {MAX_LINKS} are fetched.")
    policy, loop = policy_installed(), asyncio.get_running_loop()
    found = await asyncio.gather(*(loop.run_in_executor(_fetchers(), _picture, link, policy) for link in links))
    return dict(zip(links, found, strict=True))


def links_in(values: Mapping[str, Any]) -> Iterator[str]:
    for name in FIELDS:
        yield from _links(values.get(name))
    scripts = values.get("alwayson_scripts")
    for unit in _units(scripts):
        for name in UNIT_FIELDS:
            yield from _links(unit.get(name))
    for name, script in scripts.items() if isinstance(scripts, Mapping) else ():
        if str(name).lower() == IMAGE_LINK:
            yield from _links(script)


def with_pictures(values: Mapping[str, Any], pictures: Pictures) -> dict[str, Any]:
    """The same request with the pictures themselves."""
    if not pictures:
        return dict(values)
    changed = {name: _replaced(values[name], pictures) for name in FIELDS if name in values}
    scripts = values.get("alwayson_scripts")
    if isinstance(scripts, Mapping):
        changed["alwayson_scripts"] = {
            name: _units_replaced(script, pictures)
            if str(name).lower() == "controlnet"
            else _replaced(script, pictures)
            if str(name).lower() == IMAGE_LINK
            else script
            for name, script in scripts.items()
        }
    return {**values, **changed}


def is_link(value: Any) -> bool:
    return isinstance(value, str) and value.strip().startswith(("http://", "https://"))


def _links(value: Any) -> Iterator[str]:
    if is_link(value):
        yield value.strip()
    elif isinstance(value, list):
        for item in value:
            yield from _links(item)
    elif isinstance(value, Mapping):
        for name in PARTS:
            yield from _links(value.get(name))


def _replaced(value: Any, pictures: Pictures) -> Any:
    if isinstance(value, list):
        return [_replaced(item, pictures) for item in value]
    if isinstance(value, Mapping):
        return {name: _replaced(item, pictures) if name in PARTS else item for name, item in value.items()}
    return pictures.get(value.strip(), value) if is_link(value) else value


def _units(scripts: Any) -> Iterator[Mapping[str, Any]]:
    """Control units wherever they may stand."""
    for name, script in scripts.items() if isinstance(scripts, Mapping) else ():
        units = script.get("args") if str(name).lower() == "controlnet" and isinstance(script, Mapping) else None
        yield from (unit for unit in (units if isinstance(units, list) else ()) if isinstance(unit, Mapping))


def _units_replaced(script: Any, pictures: Pictures) -> Any:
    if not isinstance(script, Mapping) or not isinstance(script.get("args"), list):
        return script
    units = [
        {name: _replaced(item, pictures) if name in UNIT_FIELDS else item for name, item in unit.items()}
        if isinstance(unit, Mapping)
        else unit
        for unit in script["args"]
    ]
    return {**script, "args": units}


@cache
def _fetchers() -> ThreadPoolExecutor:
    """Threads of their own: however slow other servers are, the threads that answer requests are not theirs to hold."""
    return ThreadPoolExecutor(max_workers=FETCHES_AT_ONCE, thread_name_prefix="fetch")


def _picture(link: str, policy: FetchPolicy) -> str:
    """Raises: HandlerError: In A1111's words, with our reason beside them."""
    if not policy.enabled:
        raise HandlerError(500, "Requests not allowed")
    try:
        return base64.b64encode(fetch(link, policy=policy).data).decode()
    except FetchForbiddenError as error:
        raise HandlerError(500, "Request to local resource not allowed", reason=str(error)) from error
    except FetchError as error:
        raise HandlerError(500, "Invalid image url", reason=str(error)) from error
