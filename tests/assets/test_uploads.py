"""Files that come in parts: what was sent is kept, what was interrupted goes on, what is wrong leaves nothing behind."""

from __future__ import annotations

import base64
import hashlib
import io
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from django.utils import timezone

from accounts.models import Role
from assets.models import Asset, Upload, UploadPart
from assets.tasks import join, resume
from assets.uploads import KEPT, JoinedParts, upload_append, upload_begin
from common.errors import ConflictError
from tests.factories import a_caller
from tests.weights import a_checkpoint_file

pytestmark = pytest.mark.django_db
UPLOADS = "/api/v1/uploads"


@pytest.fixture(autouse=True)
def tasks_run_at_once(settings):
    settings.CELERY_TASK_ALWAYS_EAGER = True


class Sender:
    """Speaks tus as any client does."""

    def __init__(self, *, superuser: bool = True, **caller: Any) -> None:
        self.caller = a_caller(**caller)
        if superuser:
            self.caller.user.is_superuser = True
            self.caller.user.save()
        self.client = Client(headers={"Authorization": f"Bearer {self.caller.token.text}", "Tus-Resumable": "1.0.0"})

    def begin(self, data: bytes, **metadata: str) -> Any:
        values = {"filename": "dream.safetensors", "kind": "checkpoint", **metadata}
        pairs = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())
        return self.client.post(UPLOADS, headers={"Upload-Length": str(len(data)), "Upload-Metadata": pairs})

    def part(self, address: str, offset: int, data: bytes) -> Any:
        return self.client.patch(
            address, data, content_type="application/offset+octet-stream", headers={"Upload-Offset": str(offset)}
        )

    def offset(self, address: str) -> int:
        return int(self.client.head(address)["Upload-Offset"])

    def send(self, data: bytes, parts: int = 3, **metadata: str) -> str:
        address = self.begin(data, **metadata)["Location"]
        size = -(-len(data) // parts)
        for offset in range(0, len(data), size):
            assert self.part(address, offset, data[offset : offset + size]).status_code == 204
        return address


@pytest.fixture
def sender() -> Sender:
    return Sender()


def stored(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "assets").rglob("*") if path.is_file())


def test_p2_what_is_said_beside_the_file_becomes_its_card(sender):
    sender.send(a_checkpoint_file(), trigger_words="ring", preferred_weight="0.5", source_page="https://example.com")
    asset = Asset.objects.get()
    assert (asset.trigger_words, asset.preferred_weight, asset.source_page) == ("ring", 0.5, "https://example.com")


@pytest.mark.parametrize("wrong", [{"licence": "x" * 201}, {"source_page": "ftp://x"}, {"preferred_weight": "nan"}])
def test_a_wrong_card_is_refused_before_anything_is_sent(sender, wrong):
    answer = sender.begin(a_checkpoint_file(), **wrong)
    assert answer.status_code == 422 and next(iter(wrong)) in answer.json()["errors"][0]["pointer"]
    assert not Asset.objects.exists()


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_a_file_in_parts_becomes_the_asset_it_would_be_in_one(sender, tmp_path, parts):
    data = a_checkpoint_file()
    sender.send(data, parts)
    asset = Asset.objects.get()
    assert (asset.state, asset.sha256, asset.name) == ("approved", hashlib.sha256(data).hexdigest(), "dream")
    assert stored(tmp_path) == [f"{asset.sha256}.safetensors"]
    assert not Upload.objects.exists() and not UploadPart.objects.exists()


def test_an_interrupted_upload_goes_on_where_it_was(sender):
    data = a_checkpoint_file()
    address = sender.begin(data)["Location"]
    sender.part(address, 0, data[:1000])
    assert sender.offset(address) == 1000
    assert sender.part(address, 1000, data[1000:]).status_code == 204
    assert Asset.objects.get().state == "approved"


def test_a_part_sent_twice_counts_once(sender, tmp_path):
    data = a_checkpoint_file()
    address = sender.begin(data)["Location"]
    sender.part(address, 0, data[:1000])
    again = sender.part(address, 0, data[:1000])
    assert again.status_code == 409 and again.json()["code"] == "conflict"
    assert sender.offset(address) == 1000 and len(stored(tmp_path)) == 1


@pytest.mark.parametrize(
    ("offset", "data", "status"),
    [(1, b"x", 409), (0, b"x" * 11, 422)],
    ids=["not where the last ended", "longer than what is missing"],
)
def test_a_part_that_does_not_fit_is_refused_and_not_kept(sender, tmp_path, offset, data, status):
    address = sender.begin(b"x" * 10)["Location"]
    assert sender.part(address, offset, data).status_code == status
    assert sender.offset(address) == 0 and stored(tmp_path) == []


def test_a_part_larger_than_the_limit_is_refused(sender, monkeypatch, tmp_path):
    for module in ("assets.uploads", "assets.tus"):
        monkeypatch.setattr(f"{module}.MOST_PART_BYTES", 5)
    address = sender.begin(b"x" * 10)["Location"]
    assert sender.part(address, 0, b"x" * 6).status_code == 422 and stored(tmp_path) == []


WRONG = {
    "kind": ({"kind": "painting"}, "#/kind"),
    "hash": ({"sha256": "abc"}, "#/sha256"),
    "access": ({"access": "everybody"}, "#/access"),
    "name": ({"filename": "../.."}, "#/name"),
    "YAML": ({"config": "a: [1"}, "#/config"),
}


@pytest.mark.parametrize(("metadata", "pointer"), WRONG.values(), ids=WRONG)
def test_an_announcement_with_a_wrong_field_leaves_nothing(sender, metadata, pointer):
    answer = sender.begin(b"x", **metadata)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
    assert not Asset.objects.exists()


def test_an_empty_file_and_a_boundless_one_are_refused(sender):
    assert sender.begin(b"").status_code == 422
    huge = sender.client.post(
        UPLOADS, headers={"Upload-Length": str(2**60), "Upload-Metadata": "kind Y2hlY2twb2ludA=="}
    )
    assert huge.status_code == 422 and not Asset.objects.exists()


def test_another_hash_than_announced_is_refused_with_the_reason(sender, tmp_path):
    sender.send(a_checkpoint_file(), sha256="0" * 64)
    asset = Asset.objects.get()
    assert asset.state == "quarantined" and "announced was 000" in asset.reason and stored(tmp_path) == []


def test_weights_that_are_none_are_refused_with_the_reason(sender, tmp_path):
    sender.send(b"no weights at all, only text")
    assert Asset.objects.get().state == "quarantined" and stored(tmp_path) == []


def test_an_upload_is_given_up_without_a_trace(sender, tmp_path):
    address = sender.begin(b"x" * 10)["Location"]
    sender.part(address, 0, b"xxx")
    assert sender.client.delete(address).status_code == 204
    assert not Asset.objects.exists() and stored(tmp_path) == []
    assert sender.client.head(address).status_code == 404


def test_an_upload_nobody_goes_on_with_is_forgotten(sender, tmp_path):
    address = sender.begin(b"x" * 10)["Location"]
    sender.part(address, 0, b"xxx")
    resume()
    assert sender.offset(address) == 3
    Upload.objects.update(touched_at=timezone.now() - KEPT - timedelta(minutes=1))
    resume()
    assert not Asset.objects.exists() and stored(tmp_path) == []


def test_an_upload_whose_message_was_lost_is_joined_later(sender, monkeypatch):
    monkeypatch.setattr("assets.tus.join_soon", lambda upload: None)
    sender.send(a_checkpoint_file())
    assert Asset.objects.get().state == "received"
    Upload.objects.update(touched_at=timezone.now() - timedelta(hours=1))
    resume()
    assert Asset.objects.get().state == "approved"


@pytest.mark.parametrize("killed_at", ["assets.uploads.draft_store", "assets.uploads._remove", "assets.tasks.process"])
def test_a_join_that_was_killed_is_finished_by_the_next(sender, monkeypatch, tmp_path, killed_at):
    monkeypatch.setattr("assets.tus.join_soon", lambda upload: None)
    address = sender.send(a_checkpoint_file())
    with monkeypatch.context() as killing:
        killing.setattr(killed_at, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            join.run(address.rpartition("/")[2])
    join.run(address.rpartition("/")[2])
    Asset.objects.update(created_at=timezone.now() - timedelta(hours=1))
    resume()
    assert Asset.objects.get().state == "approved" and len(stored(tmp_path)) == 1


def test_somebody_elses_upload_does_not_exist(sender):
    address = sender.begin(b"x" * 10)["Location"]
    other = Sender(user="eve")
    assert other.client.head(address).status_code == 404
    assert other.part(address, 0, b"x").status_code == 404
    assert other.client.delete(address).status_code == 404
    assert sender.offset(address) == 0


def test_a_member_uploads_no_models_and_a_lead_those_of_the_own_team():
    assert Sender(superuser=False, role=Role.MEMBER).begin(b"x").status_code == 403
    lead = Sender(superuser=False, user="lea", role=Role.LEAD)
    assert lead.begin(b"x", access="public").status_code == 403
    lead.send(a_checkpoint_file())
    asset = Asset.objects.get()
    assert (asset.access, list(asset.teams.all())) == ("teams", [lead.caller.team])


def test_who_leads_no_more_sends_no_further_part_and_may_give_the_upload_up(tmp_path):
    lead = Sender(superuser=False, user="lea", role=Role.LEAD)
    address = lead.begin(b"x" * 10)["Location"]
    assert lead.part(address, 0, b"xxxxx").status_code == 204
    lead.caller.user.memberships.update(role=Role.MEMBER)
    assert lead.part(address, 5, b"xxxxx").status_code == 403
    assert lead.client.delete(address).status_code == 204 and stored(tmp_path) == []


def test_a_token_needs_the_scope_and_nobody_comes_without_one():
    assert Sender(scopes=["models:read"]).begin(b"x").status_code == 403
    assert Client(headers={"Tus-Resumable": "1.0.0"}).post(UPLOADS).status_code == 401


def test_another_version_of_the_protocol_is_named(sender):
    answer = sender.client.post(UPLOADS, headers={"Tus-Resumable": "0.2.2"})
    assert (answer.status_code, answer["Tus-Version"]) == (412, "1.0.0")


@pytest.mark.django_db(transaction=True)
def test_two_clients_that_send_the_same_part_at_once_add_it_once(tmp_path):
    caller = a_caller()
    upload = upload_begin(uploaded_by=caller.user, name="a", kind="lora", size_bytes=10)
    together, outcomes = Barrier(2), []

    def append() -> None:
        together.wait()
        try:
            outcomes.append(upload_append(upload=upload, offset=0, part=io.BytesIO(b"12345")))
        except ConflictError:
            outcomes.append("conflict")
        finally:
            connections["default"].close()

    threads = [Thread(target=append) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["5", "conflict"]
    assert Upload.objects.get().received_bytes == 5 and len(stored(tmp_path)) == 1


def test_parts_read_as_one_file():
    upload = upload_begin(uploaded_by=a_caller().user, name="a", kind="lora", size_bytes=10)
    for offset, data in ((0, b"0123"), (4, b"4"), (5, b"56789")):
        upload.received_bytes = upload_append(upload=upload, offset=offset, part=io.BytesIO(data))
    with JoinedParts(list(upload.parts.all())) as file:
        assert file.seek(0, io.SEEK_END) == 10 and file.read() == b""
        for begin in range(11):
            for size in (0, 1, 3, 10, -1):
                file.seek(begin)
                whole = b"0123456789"[begin:]
                assert file.read(size) == (whole if size < 0 else whole[:size])
