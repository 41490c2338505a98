"""What people say about a file: read from what lies beside it and inside it, kept small and plain, changed by those who may."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.core.management import call_command
from django.test import Client
from PIL import Image

from accounts.models import Role
from assets.cards import MAX_SIDECAR_BYTES, Card, card_from_civitai, card_from_header, card_from_user_metadata
from assets.intake import asset_process, asset_receive
from assets.models import Access, Asset
from assets.previews import SALT, preview_made, preview_set
from assets.services import asset_describe
from assets.sidecars import sidecars_of
from tests.factories import a_caller, a_checkpoint
from tests.weights import SD1_KEYS, a_checkpoint_file, framed

pytestmark = pytest.mark.django_db
USER_METADATA = {
    "description": "Draws rings.",
    "sd version": "SD1",
    "activation text": "ring, disc",
    "preferred weight": 0.7,
    "notes": "Not above 1.",
}
CIVITAI = {
    "id": 8,
    "modelId": 7,
    "baseModel": "SD 1.5",
    "trainedWords": ["a ring", "ring, disc"],
    "description": "<p>Draws <b>rings</b> &amp; discs.</p><script>alert(1)</script>",
    "images": [{"url": "https://example.com/a.png"}],
}


def a_picture(width: int = 900, height: int = 600, form: str = "PNG") -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(written, form)
    return written.getvalue()


def beside(folder: Path, name: str, content: bytes | dict[str, Any]) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.fixture
def weights(tmp_path) -> Path:
    folder = tmp_path / "import"
    folder.mkdir()
    path = folder / "dream.safetensors"
    path.write_bytes(a_checkpoint_file())
    return path


def stored(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "assets" / "previews").glob("*"))


def with_metadata(metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, shape in SD1_KEYS.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    return framed(header, bytes(offset))


def test_a1111s_card_is_read():
    assert card_from_user_metadata(json.dumps(USER_METADATA).encode()) == Card(
        description="Draws rings.",
        trigger_words="ring, disc",
        preferred_weight=0.7,
        base_model="SD1",
        notes="Not above 1.",
    )


def test_civitais_card_is_read_as_plain_text_with_the_page_its_numbers_make():
    assert card_from_civitai(json.dumps(CIVITAI).encode()) == Card(
        description="Draws rings & discs.\nalert(1)",
        trigger_words="a ring, ring, disc",
        source_page="https://civitai.com/models/7?modelVersionId=8",
        base_model="SD 1.5",
    )


def test_a_file_tells_about_itself():
    said = {
        "modelspec.description": "Rings",
        "modelspec.license": "CC-BY-4.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "ss_dataset_dirs": json.dumps({"10_ring": {"n_repeats": 10, "img_count": 20}}),
        "ss_tag_frequency": json.dumps({"10_ring": {"ohwx ring": 20, "blue": 7}}),
    }
    assert card_from_header(said) == Card(
        description="Rings", licence="CC-BY-4.0", base_model="stable-diffusion-v1", trigger_words="ohwx ring"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"description": 7, "activation text": ["x"], "preferred weight": "much", "notes": None},
        {"preferred weight": 1e300},
        {"preferred weight": True},
        {"sd version": "Unknown"},
        {"ss_tag_frequency": {"x": 1}},
    ],
)
def test_what_is_of_a_wrong_type_is_nothing(wrong):
    assert card_from_user_metadata(json.dumps(wrong).encode()) == Card()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[1]", "no JSON object"),
        (b"\xff{", "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b'{"a":' + b'{"a":' * 40 + b"1" + b"}" * 41, "levels"),
        (b" " * (MAX_SIDECAR_BYTES + 1), "longer than"),
    ],
    ids=["a list", "no text", "deep beyond Python", "deep", "long"],
)
def test_an_unusable_card_is_passed_over_with_its_reason(weights, content, why):
    beside(weights.parent, "dream.json", content)
    beside(weights.parent, "dream.civitai.info", CIVITAI)
    found = sidecars_of(weights)
    assert len(found.passed_over) == 1 and why in found.passed_over[0] and found.card.base_model == "SD 1.5"


def test_texts_are_cut_and_hold_nothing_that_no_database_takes():
    card = card_from_user_metadata(b'{"description": "a\\u0000b\\ud800c' + b"x" * 30_000 + b'", "notes": "a\\u202eb"}')
    assert card.description.startswith("abcx") and len(card.description) == 20_000 and card.notes == "ab"


def test_links_beside_weights_are_not_followed(weights, tmp_path):
    beside(tmp_path, "secret.png", a_picture())
    (weights.parent / "dream.preview.png").symlink_to(tmp_path / "secret.png")
    assert sidecars_of(weights).preview == b""


def test_p2_an_imported_file_has_the_card_that_lay_beside_it(weights, tmp_path):
    beside(weights.parent, "dream.json", {"description": "Mine.", "preferred weight": 0})
    beside(weights.parent, "dream.civitai.info", CIVITAI)
    beside(weights.parent, "dream.png", b"no picture")
    beside(weights.parent, "dream.preview.png", a_picture())
    call_command("import_asset", str(weights), kind="checkpoint")
    asset = Asset.objects.get()
    assert (asset.description, asset.trigger_words, asset.base_model) == ("Mine.", "a ring, ring, disc", "SD 1.5")
    with Image.open(tmp_path / "assets" / asset.preview_key) as picture:
        assert (picture.format, picture.size) == ("WEBP", (512, 341))


def test_a_folder_has_the_card_that_bears_its_name(tmp_path):
    (tmp_path / "sd-1.5").mkdir()
    beside(tmp_path, "sd-1.5.json", {"description": "Of the folder."})
    assert sidecars_of(tmp_path / "sd-1.5.safetensors").card.description == "Of the folder."


def test_p14_cards_and_pictures_are_in_the_audit_log():
    asset = asset_describe(asset=a_checkpoint(), said={"notes": "new"}, preview=preview_made(a_picture()))
    changes = LogEntry.objects.filter(object_pk=str(asset.pk), content_type__model="asset").order_by("pk")
    assert changes[1].changes_dict == {"notes": ["", "new"]}
    assert changes[2].additional_data["did"] == "has another picture"


def test_p2_what_a_file_says_of_itself_fills_what_nobody_said(tmp_path):
    thumbnail = f"data:image/png;base64,{base64.b64encode(a_picture()).decode()}"
    data = with_metadata(
        {"modelspec.description": "Of the file", "modelspec.license": "MIT", "modelspec.thumbnail": thumbnail}
    )
    received = asset_receive(
        file=io.BytesIO(data), name="dream", kind="checkpoint", card=Card(description="Of a person")
    )
    asset = asset_process(received.pk)
    assert (asset.state, asset.description, asset.licence) == ("approved", "Of a person", "MIT")
    assert stored(tmp_path) == [Path(asset.preview_key).name]


def test_a_repeated_upload_adds_what_was_not_known_and_leaves_no_second_picture(tmp_path):
    asset_process(asset_receive(file=io.BytesIO(a_checkpoint_file()), name="dream", kind="checkpoint").pk)
    for note, picture in (("first", preview_made(a_picture())), ("second", preview_made(a_picture(50, 50)))):
        again = asset_receive(
            file=io.BytesIO(a_checkpoint_file()),
            name="dream",
            kind="checkpoint",
            card=Card(notes=note),
            preview=picture,
        )
        asset_process(again.pk)
    asset = Asset.objects.get()
    assert asset.notes == "first" and stored(tmp_path) == [Path(asset.preview_key).name]


def test_another_picture_takes_the_place_of_the_one_before(tmp_path, django_capture_on_commit_callbacks):
    asset = a_checkpoint()
    for size in (50, 60):
        with django_capture_on_commit_callbacks(execute=True):
            preview_set(asset=asset, made=preview_made(a_picture(size, size)))
    assert stored(tmp_path) == [Path(asset.preview_key).name]
    with django_capture_on_commit_callbacks(execute=True):
        preview_set(asset=asset, made=b"")
    assert stored(tmp_path) == [] and Asset.objects.get().preview_key == ""


def client(**caller: Any) -> Client:
    return Client(headers={"Authorization": f"Bearer {a_caller(**caller).token.text}"})


def picture_text() -> str:
    return base64.b64encode(a_picture()).decode()


def test_the_api_lists_what_the_caller_may_use_and_nothing_else():
    a_checkpoint("public-one", trigger_words="ring")
    a_checkpoint("hidden", access=Access.TEAMS)
    a_checkpoint("own", access=Access.TEAMS).teams.add(a_caller("team-a").team)
    listed = client(team="team-a").get("/api/v1/models").json()["results"]
    assert [one["name"] for one in listed] == ["own", "public-one"] and listed[1]["trigger_words"] == "ring"
    hidden = Asset.objects.get(name="hidden").pk
    assert client(team="team-a").get(f"/api/v1/models/{hidden}").status_code == 404
    found = client(team="team-a").get("/api/v1/models?kind=checkpoint&name=ring&limit=1").json()
    assert [one["name"] for one in found["results"]] == ["public-one"] and found["next"] is None


def test_the_list_goes_on_page_by_page_with_the_queries_of_one(django_assert_max_num_queries):
    for number in range(5):
        a_checkpoint(f"m{number}")
    ada, address, names = client(), "/api/v1/models?limit=2", []
    while address:
        with django_assert_max_num_queries(5):
            page = ada.get(address).json()
        names += [one["name"] for one in page["results"]]
        address = page["next"]
    assert names == ["m4", "m3", "m2", "m1", "m0"]


@pytest.mark.parametrize("asked", ["kind=colour", "limit=0", "limit=x", "before=-1", "limit=1001"])
def test_a_wrong_filter_is_named(asked):
    answer = client().get(f"/api/v1/models?{asked}")
    assert answer.status_code == 422 and asked.split("=")[0] in answer.json()["detail"]


def test_a_card_is_changed_by_the_api_and_its_picture_opens_without_a_header(settings):
    asset = a_checkpoint(access=Access.TEAMS)
    asset.teams.add(a_caller().team)
    lead = client(user="lena", role=Role.LEAD)
    said = {
        "description": "<b>x</b>",
        "source_page": "https://example.com/ring",
        "preferred_weight": 0.5,
        "preview": picture_text(),
    }
    answer = lead.patch(f"/api/v1/models/{asset.pk}", said, content_type="application/json").json()
    assert {name: answer[name] for name in said if name != "preview"} == {
        n: v for n, v in said.items() if n != "preview"
    }
    opened = Client().get(answer["preview"].replace("http://testserver", ""))
    assert (
        opened.status_code == 200
        and opened["Content-Type"] == "image/webp"
        and opened["X-Content-Type-Options"] == "nosniff"
    )
    assert b"".join(opened.streaming_content)[8:12] == b"WEBP"
    settings.FILE_URL_LIFETIME_SECONDS = -1
    assert Client().get(answer["preview"].replace("http://testserver", "")).status_code == 404
    assert Client().get(f"/models/previews/{SALT}").status_code == 404


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"source_page": "javascript:alert(1)"}, "source_page"),
        ({"licence": "x" * 201}, "licence"),
        ({"preferred_weight": "much"}, "preferred_weight"),
        ({"notes": 7}, "notes"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"preview": "x"}, "preview"),
        ({"preview": base64.b64encode(b"no picture").decode()}, "preview"),
        ({"preview": 7}, "preview"),
    ],
)
def test_a_wrong_card_is_refused_by_field_and_changes_nothing(said, field, tmp_path):
    asset = a_checkpoint()
    caller = a_caller()
    caller.user.is_superuser = True
    caller.user.save()
    root = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    answer = root.patch(f"/api/v1/models/{asset.pk}", {"description": "new", **said}, content_type="application/json")
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"].endswith(field)
    asset.refresh_from_db()
    assert asset.card == Card() and stored(tmp_path) == []


@pytest.mark.parametrize("whose", ["everybody's", "two teams'", "the team's, by a member", "without the scope"])
def test_p11_cards_of_others_are_not_written(whose):
    own, other = a_caller().team, a_caller("team-b").team
    asset = a_checkpoint(access=Access.PUBLIC if whose == "everybody's" else Access.TEAMS)
    asset.teams.set([own, other] if whose == "two teams'" else [own])
    caller: dict[str, Any] = {"user": "lena", "role": Role.LEAD}
    if "member" in whose:
        caller = {"user": "max"}
    if "scope" in whose:
        caller["scopes"] = ["models:read"]
    answer = client(**caller).patch(f"/api/v1/models/{asset.pk}", {"notes": "x"}, content_type="application/json")
    assert answer.status_code == 403 and Asset.objects.get().notes == ""


def test_a1111s_thumb_shows_the_picture_of_what_the_caller_may_use():
    asset = a_checkpoint("dream", access=Access.TEAMS)
    asset.teams.add(a_caller().team)
    preview_set(asset=asset, made=preview_made(a_picture()))
    address = "/sd_extra_networks/thumb?filename=dream.safetensors"
    shown = client().get(address)
    assert (shown.status_code, shown["Content-Type"]) == (200, "image/webp")
    assert client(team="team-b", user="eve").get(address).status_code == 404
