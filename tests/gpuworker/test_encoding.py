"""Files: the same pixels come back, the texts can be read by A1111's own means, sizes stay near Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from gpuworker.contract import Picture
from gpuworker.encoding import DEFLATERS, encoded, exif_of, png_of
from gpuworker.engine.errors import InvalidSpecError

INFOTEXT = "a cat, 猫 🐈\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a"


def picture_of(width: int = 40, height: int = 24, mode: str = "RGB") -> Picture:
    """Slopes, as smooth as a picture, so that JPEG stays near it."""
    down, across = np.mgrid[0:height, 0:width]
    values = np.stack([(across * (channel + 2) + down * 3) % 256 for channel in range(len(mode))], -1)
    return Picture(width, height, values.astype(np.uint8).tobytes(), mode)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def user_comment(data: bytes) -> str:
    """As piexif reads it: undefined bytes whose first eight name the encoding."""
    exif = opened(data).getexif().get_ifd(0x8769)
    comment = exif[0x9286]
    assert isinstance(comment, bytes) and comment.startswith(b"UNICODE\0")
    return comment.removeprefix(b"UNICODE\0").decode("utf-16-be")


@pytest.mark.parametrize("deflate", DEFLATERS.values(), ids=DEFLATERS)
@pytest.mark.parametrize("size", [(40, 24), (1, 1), (3, 200)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_png_gives_the_same_pixels_back(mode, size, deflate):
    picture = picture_of(*size, mode)
    image = opened(png_of(picture, {}, deflate))
    assert (image.mode, image.size, image.tobytes()) == (mode, size, picture.pixels)


@pytest.mark.parametrize("text", ["plain", "é ü", INFOTEXT, ""])
def test_png_texts_are_read_back(text):
    texts = {"parameters": text, "postprocessing": "Postprocess upscale by: 2.0"}
    assert opened(encoded(picture_of(), "PNG", texts).data).text == texts


def test_png_chooses_text_chunks_as_pillow_does():
    assert b"tEXtparameters\0\xe9" in png_of(picture_of(), {"parameters": "é"})
    assert b"iTXtparameters\0\0\0\0\0" in png_of(picture_of(), {"parameters": "猫"})


def test_half_a_character_becomes_a_question_mark():
    assert opened(encoded(picture_of(), "png", {"parameters": "猫\ud83d"}).data).text == {"parameters": "猫?"}
    assert user_comment(encoded(picture_of(), "jpg", {"parameters": "猫\ud83d"}).data) == "猫?"


@pytest.mark.parametrize(
    ("samples_format", "kind", "extension", "content_type"),
    [
        ("jpg", "JPEG", "jpg", "image/jpeg"),
        ("JPEG", "JPEG", "jpeg", "image/jpeg"),
        ("webp", "WEBP", "webp", "image/webp"),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_other_formats_keep_the_infotext(samples_format, kind, extension, content_type, mode):
    made = encoded(picture_of(mode=mode), samples_format, {"parameters": INFOTEXT, "other": "gone"})
    assert (made.extension, made.content_type, opened(made.data).format) == (extension, content_type, kind)
    assert opened(made.data).size == (40, 24) and opened(made.data).mode in ("L", "RGB")
    assert user_comment(made.data) == INFOTEXT


def test_jpeg_is_what_pillow_makes_of_that_quality():
    picture, own = picture_of(), io.BytesIO()
    image = Image.frombytes("RGB", (40, 24), picture.pixels)
    image.save(own, "JPEG", quality=55, exif=exif_of("x"))
    assert encoded(picture, "jpg", {"parameters": "x"}, quality=55).data == own.getvalue()


def test_lossless_webp_gives_the_same_pixels_back():
    picture = picture_of()
    assert opened(encoded(picture, "webp", lossless=True).data).tobytes() == picture.pixels
    assert opened(encoded(picture, "webp").data).tobytes() != picture.pixels


@pytest.mark.parametrize("text", ["x" * 100_000, "🐈" * 50_000, "x" + "🐈" * 50_000])
def test_an_infotext_too_long_for_jpeg_is_cut_between_characters(text):
    kept = user_comment(encoded(picture_of(), "jpg", {"parameters": text}).data)
    assert len(kept) > 16_000 and text.startswith(kept)


@pytest.mark.parametrize("samples_format", ["gif", "", "png "])
def test_an_unknown_format_is_an_error(samples_format):
    with pytest.raises(InvalidSpecError, match="it is one of png, jpg, jpeg, webp"):
        encoded(picture_of(), samples_format)


def test_a_picture_too_large_for_its_format_is_an_error():
    with pytest.raises(InvalidSpecError, match="16383"):
        encoded(picture_of(20_000, 1), "webp")
