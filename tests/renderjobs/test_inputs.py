"""Pictures that callers send: what is taken, what is refused, what is stored."""

from __future__ import annotations

import base64
import io

import pytest
from django.core.files.storage import default_storage
from PIL import Image

from common.pictures import UnreadablePictureError
from renderjobs.inputs import input_store, picture_from_text
from renderjobs.models import InputFile, RenderImage, RenderJob
from tests.factories import a_caller

pytestmark = pytest.mark.django_db


def a_picture(size=(24, 16), mode="RGB", kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else None).save(file, kind, **options)
    return file.getvalue()


def as_text(data: bytes, head: str = "") -> str:
    return head + base64.b64encode(data).decode()


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_base64_and_data_uris_are_pictures(head):
    upload = picture_from_text(as_text(a_picture(), head))
    assert (upload.picture.width, upload.picture.height, upload.data) == (24, 16, a_picture())


def test_line_breaks_in_base64_are_passed_over():
    text = as_text(a_picture())
    assert picture_from_text(f"{text[:10]}\r\n {text[10:]}").data == a_picture()


def test_a_turned_photograph_has_the_size_it_is_seen_in():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = picture_from_text(as_text(a_picture(kind="JPEG", exif=exif))).picture
    assert (picture.width, picture.height) == (16, 24)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!!!",
        as_text(b"no picture"),
        as_text(a_picture()[:40]),
        as_text(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ],
)
def test_what_is_no_picture_is_refused_in_a1111s_words(text):
    with pytest.raises(UnreadablePictureError, match="Invalid encoded image"):
        picture_from_text(text)


@pytest.mark.parametrize("address", ["http://10.0.0.1/a.png", "https://example.org/a.png"])
def test_s14_nothing_is_fetched(address):
    with pytest.raises(UnreadablePictureError, match="Requests not allowed"):
        picture_from_text(address)


def test_a_picture_that_unpacks_beyond_the_limit_is_refused_before_it_is_unpacked(settings):
    settings.MAX_INPUT_PIXELS = 10_000
    with pytest.raises(UnreadablePictureError, match="exceeds the limit of 10000"):
        picture_from_text(as_text(a_picture((200, 100))))


def test_the_same_picture_is_stored_once_per_team():
    ours, theirs = a_caller("ours", "ada"), a_caller("theirs", "bob")
    upload = picture_from_text(as_text(a_picture()))
    for team in (ours.team, ours.team, theirs.team):
        input_store(team=team, uploads=[upload, upload])
    rows = InputFile.objects.all()
    assert sorted(row.team.name for row in rows) == ["ours", "theirs"]
    for row in rows:
        with default_storage.open(row.file_key) as file:
            assert file.read() == upload.data


def test_nothing_of_a_wrong_request_is_kept(client):
    caller = a_caller()
    body = {"kind": "img2img", "request": {"init_images": [as_text(a_picture())], "steps": 0}}
    answer = client.post(
        "/api/v1/jobs", body, content_type="application/json", headers={"Authorization": f"Bearer {caller.token.text}"}
    )
    assert answer.status_code == 422
    assert not InputFile.objects.exists() and not RenderJob.objects.exists() and not RenderImage.objects.exists()
