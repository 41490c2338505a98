"""The entries of ``alwayson_scripts`` that are no scripts. Pure; knows nothing of rendering.

Each is a value, or ``{"args": [value]}`` as real scripts have it; a null or an empty text is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from renderjobs.compat.sdapi.errors import WireError, field_detail

SD_MODEL_CHECKPOINT, SD_VAE, IMAGE_LINK = "sd_model_checkpoint", "sd_vae", "image_link"
NAMES = (SD_MODEL_CHECKPOINT, SD_VAE, "save_dir", IMAGE_LINK, "id_task", "uid")
OPTIONS = (SD_MODEL_CHECKPOINT, SD_VAE)
"""Those that are options of A1111 under another roof."""
MAX_ID_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Additions:
    options: dict[str, str]
    save_dir: str
    image_link: str
    tags: dict[str, str]
    """``id_task`` and ``uid``, as tags of the job: the one is answered, by the other costs are told apart."""

    @property
    def any(self) -> bool:
        return bool(self.options or self.save_dir or self.image_link or self.tags)


def additions_of(scripts: Mapping[str, Any]) -> Additions:
    """Raises: WireError: One is no text."""
    given = {str(name).lower(): value for name, value in scripts.items()}
    texts = {name: _text(name, given.get(name)) for name in NAMES}
    return Additions(
        options={name: texts[name] for name in OPTIONS if texts[name]},
        save_dir=texts["save_dir"],
        image_link=texts[IMAGE_LINK],
        tags={name: _identifier(name, texts[name]) for name in ("id_task", "uid") if texts[name]},
    )


def id_task_of(scripts: Any) -> str | None:
    """The caller's id of a request, whatever else is wrong with it; None where there is none that can be kept."""
    given = {str(name).lower(): value for name, value in scripts.items()} if isinstance(scripts, Mapping) else {}
    try:
        return _identifier("id_task", _text("id_task", given.get("id_task"))) or None
    except WireError:
        return None


def with_linked_picture(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an img2img call with the picture of ``image_link`` where A1111 has it.

    Raises:
        WireError: It is no text.
    """
    scripts = body.get("alwayson_scripts")
    picture = additions_of(scripts).image_link if isinstance(scripts, Mapping) else ""
    return {**body, "init_images": [picture]} if picture else dict(body)


def _text(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        arguments = value.get("args")
        value = arguments[0] if isinstance(arguments, list) and arguments else None
    if name in ("id_task", "uid") and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise WireError(field_detail(f"alwayson_scripts.{name}", "str type expected", "type_error.str"))
    return value or ""


def _identifier(name: str, text: str) -> str:
    if len(text) > MAX_ID_LENGTH or not text.isprintable():
        message = f"{name} is at most {MAX_ID_LENGTH} printable characters"
        raise WireError(field_detail(f"alwayson_scripts.{name}", message, "value_error"))
    return text
