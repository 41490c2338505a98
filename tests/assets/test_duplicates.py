"""The same bytes under another name: both names work, the file is stored once, and who may know is told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.test import Client
from kombu.exceptions import OperationalError

from accounts.models import User
from assets.models import Access, Asset
from assets.tasks import process
from tests.admin.pages import client_of, page
from tests.assets.test_intake import stored, take_in
from tests.factories import a_caller
from tests.weights import a_checkpoint_file

pytestmark = pytest.mark.django_db


def listed(**caller: str) -> dict[str, list[str]]:
    client = Client(headers={"Authorization": f"Bearer {a_caller(**caller).token.text}"})
    return {one["name"]: one["same_bytes_as"] for one in client.get("/api/v1/models").json()["results"]}


def test_p2_the_api_names_the_other_name_of_a_file(tmp_path):
    take_in(a_checkpoint_file(), "dream.safetensors")
    again = take_in(a_checkpoint_file(), "copy.safetensors")
    take_in(a_checkpoint_file(b"\1"), "other.safetensors")
    assert listed() == {"dream": ["copy"], "copy": ["dream"], "other": []} and len(stored(tmp_path)) == 2
    client = Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})
    assert client.get(f"/api/v1/models/{again.pk}").json()["same_bytes_as"] == ["dream"]


def test_p5_a_name_one_may_not_use_is_not_told():
    take_in(a_checkpoint_file(), "secret.safetensors", access=Access.TEAMS, teams=(a_caller("team-b", "bob").team,))
    take_in(a_checkpoint_file(), "dream.safetensors")
    assert listed(team="team-a") == {"dream": []}
    assert listed(team="team-b", user="bob") == {"dream": ["secret"], "secret": ["dream"]}


def test_the_admin_says_it_at_the_upload_and_in_the_list(monkeypatch):
    def nobody_answers(*args: object) -> None:
        raise OperationalError

    monkeypatch.setattr(process, "delay", nobody_answers)  # the web process then looks at the file while the page waits
    take_in(a_checkpoint_file(), "dream.safetensors")
    root = client_of(User.objects.create_superuser("root"))
    given = {
        "kind": "checkpoint",
        "file": SimpleUploadedFile("copy.safetensors", a_checkpoint_file()),
        "access": "public",
    }
    body = root.post(page("assets_asset", "add"), given, follow=True).content.decode()
    assert "The same file is here as dream already." in body
    copy = Asset.objects.get(name="copy")
    assert "dream" in root.get(page("assets_asset", "change", copy.pk)).content.decode()


def test_the_command_says_it_too(tmp_path: Path):
    for name in ("dream", "copy"):
        (tmp_path / f"{name}.safetensors").write_bytes(a_checkpoint_file())
        said = io.StringIO()
        call_command("import_asset", str(tmp_path / f"{name}.safetensors"), kind="checkpoint", stderr=said)
    assert said.getvalue() == "The same file is here as dream already.\n"
