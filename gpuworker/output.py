"""Pixels → the stored files: infotext, encoding, storage. Runs in the delivery threads while the next micro-batch denoises."""

from __future__ import annotations

import hashlib

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from gpuworker.contract import DetectRecipe, ExtrasRecipe, Picture, Recipe, Rendered
from gpuworker.contract.extras import extras_text
from gpuworker.contract.outcome import CONTROL_MAP
from gpuworker.encoding import Encoded, encoded
from renderjobs.claims import ClaimedImage
from renderjobs.compat.sdapi.infotext import infotext_of
from renderjobs.delivery import StoredAttachment, StoredPicture
from renderjobs.outputs import image_stem, map_stem

COST = "cost"
"""Keyword of the text about money; PNG only, the other formats hold one text."""


def picture_store(image: ClaimedImage, rendered: Rendered) -> StoredPicture:
    """Encode and upload a picture and what came along, under keys of this very attempt, so that no other try can overwrite them."""
    texts = texts_of(image)
    file = _encoded(image, rendered.picture, {**texts, **cost_of(image, rendered.gpu_us)})
    stem = key_stem(image)
    return StoredPicture(
        key=default_storage.save(f"{stem}.{file.extension}", ContentFile(file.data)),
        sha256=hashlib.sha256(file.data).hexdigest(),
        size_bytes=len(file.data),
        width=rendered.picture.width,
        height=rendered.picture.height,
        infotext=next(iter(texts.values()), ""),
        attachments=tuple(
            _attachment_store(
                attachment_stem, attachment.role, _encoded(image, attachment.picture, {}), attachment.picture
            )
            for attachment_stem, attachment in zip(attachment_stems(image, rendered), rendered.attachments, strict=True)
        ),
        warnings=rendered.warnings,
        verdict=rendered.verdict,
    )


def texts_of(image: ClaimedImage) -> dict[str, str]:
    """What is written into the file: keyword → text."""
    match image.recipe:
        case Recipe():
            return {"parameters": infotext_of(image.recipe)}
        case ExtrasRecipe():
            return {"postprocessing": extras_text(image.recipe)}
        case DetectRecipe():
            return {}


def cost_of(image: ClaimedImage, gpu_us: int) -> dict[str, str]:
    """The text about money, for teams that want it. Never in exact mode, where equal pictures are equal files (J11)."""
    if not image.terms.shows_cost or image.job.request["exact"]:
        return {}
    price = image.terms.price
    paid, _ = image.terms.charge(gpu_us)
    text = f"GPU seconds: {gpu_us / 1e6:.6f}, Amount: {paid:.6f} {price.currency}, Rate card: {price.rate_card_name}"
    return {COST: f"{text}, Paid by: deployed instances" if image.terms.deployed else text}


def key_stem(image: ClaimedImage) -> str:
    seed = image.recipe.seed if isinstance(image.recipe, Recipe) else 0
    return image_stem(image.job, index=image.index, attempt_id=image.attempt_id, seed=seed)


def attachment_stems(image: ClaimedImage, rendered: Rendered) -> list[str]:
    """Beside the picture; of a job with a folder of its own, control maps lie in one of theirs and are counted there."""
    stem, stems, maps = key_stem(image), [], 0
    for position, attachment in enumerate(rendered.attachments):
        if image.job.save_folder and attachment.role == CONTROL_MAP:
            stems.append(map_stem(image.job, number=maps, attempt_id=image.attempt_id))
            maps += 1
        else:
            stems.append(f"{stem}-{position}")
    return stems


def _encoded(image: ClaimedImage, picture: Picture, texts: dict[str, str]) -> Encoded:
    asked = image.job.request
    return encoded(
        picture, asked["samples_format"], texts, quality=asked["jpeg_quality"], lossless=asked["webp_lossless"]
    )


def _attachment_store(stem: str, role: str, file: Encoded, picture: Picture) -> StoredAttachment:
    return StoredAttachment(
        role=role,
        key=default_storage.save(f"{stem}.{file.extension}", ContentFile(file.data)),
        sha256=hashlib.sha256(file.data).hexdigest(),
        size_bytes=len(file.data),
        width=picture.width,
        height=picture.height,
    )
