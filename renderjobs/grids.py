"""Contact sheets, laid out as A1111 lays out its grids. PIL only; the sheet of a job is made once, when somebody asks."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db.models import Count, Max
from PIL import Image, PngImagePlugin

from renderjobs.choices import ImageState
from renderjobs.models import RenderJob
from renderjobs.outputs import grid_key


def grid_rows(count: int) -> int:
    """A1111's default: the rounded square root, at most one row per picture.

    Source: ``image_grid``, stable-diffusion-webui 1.10.1 ``modules/images.py``.
    """
    return min(count, max(1, round(math.sqrt(count))))


def grid_of(pictures: Sequence[Image.Image]) -> Image.Image:
    """Row by row; the cell is the largest picture, smaller ones are centred on white."""
    rows = grid_rows(len(pictures))
    columns = math.ceil(len(pictures) / rows)
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(pictures):
        left, top = index % columns * width, index // columns * height
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
    return sheet


def grid_size(job: RenderJob) -> tuple[int, int]:
    """Width and height in pixels of the sheet ``grid_ensure`` makes, without reading it."""
    cell = job.images.filter(state=ImageState.DELIVERED).aggregate(
        count=Count("pk"), width=Max("width"), height=Max("height")
    )
    rows = grid_rows(cell["count"])
    return math.ceil(cell["count"] / rows) * cell["width"], rows * cell["height"]


def grid_ensure(job: RenderJob) -> str:
    """The storage key of the job's contact sheet; makes it on the first call. Two callers at once write the same bytes."""
    if job.grid_key:
        return job.grid_key
    images = list(job.images.filter(state=ImageState.DELIVERED).order_by("index"))
    sheet = grid_of([read_picture(image.file_key) for image in images])
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", images[0].infotext)
    data = io.BytesIO()
    sheet.save(data, "PNG", pnginfo=text, compress_level=1)
    saved = default_storage.save(grid_key(job), ContentFile(data.getvalue()))
    if not RenderJob.objects.filter(pk=job.pk, grid_key="").update(grid_key=saved):
        winner = RenderJob.objects.values_list("grid_key", flat=True).get(pk=job.pk)
        if winner != saved:
            default_storage.delete(saved)
        saved = winner
    job.grid_key = saved
    return saved


def read_picture(key: str) -> Image.Image:
    with default_storage.open(key) as file:
        return Image.open(io.BytesIO(file.read())).convert("RGB")
