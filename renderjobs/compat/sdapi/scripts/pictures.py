"""The pictures a script of img2img begins with, and what those scripts have in common. Pure; PIL only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageOps

from renderjobs.compat.sdapi.scripts.base import Drawn, Surroundings, first_of, together

ALONE = {"n_iter": 1, "batch_size": 1}


def first_picture(values: Mapping[str, Any], around: Surroundings) -> Image.Image:
    """Raises: IndexError: The request has no picture."""
    assert around.picture is not None, "A script of img2img opens the pictures of its request."
    return ImageOps.exif_transpose(around.picture(values["init_images"][0]))


def flattened(picture: Image.Image, background: str) -> Image.Image:
    """Without transparency: laid on a colour.

    Source: ``flatten``, stable-diffusion-webui 1.10.1 ``modules/images.py``.
    """
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    under = Image.new("RGBA", picture.size, background)
    under.paste(picture, mask=picture)
    return under.convert("RGB")


def info_of_last(drawn: Sequence[Drawn], shown: int) -> dict[str, Any]:
    """Of a request that A1111 renders again and again: seed and infotext are the first run's, the lists the last run's."""
    return {
        "seed": first_of(drawn[0].seeds),
        "subseed": -1,
        "extra_generation_params": together(drawn),
        "index_of_first_image": 0,
        "infotexts": [first_of(drawn[0].infotexts)] * shown,
    }
