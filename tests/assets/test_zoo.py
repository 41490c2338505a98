"""Fetching models of the zoo from a real server: whole, broken off, changed, wrong, and where nothing may be fetched."""

from __future__ import annotations

import hashlib
import re
import tracemalloc
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.utils import timezone

from accounts.models import User
from assets import zoo
from assets.models import Asset, AssetKind, Upload
from assets.tasks import resume_zoo
from assets.zoo import FOLDER_OF_KIND, ZooEntry, refusal_of, zoo_entries, zoo_import, zoo_run, zoo_waiting
from assets.zoo_models import ZooImport
from common.errors import ForbiddenError, NotFoundError
from operations.invariants import violations
from tests.assets.zoo_server import model_server
from tests.weights import a_checkpoint_file

pytestmark = pytest.mark.django_db
PART = 300


@pytest.fixture(scope="module")
def server():
    with model_server() as models:
        yield models


@pytest.fixture
def models(server, settings, tmp_path, monkeypatch):
    """A zoo of one model, fetched in small parts."""
    monkeypatch.setattr(zoo, "PART_BYTES", PART)
    server.data, server.tag, server.ranges, server.redirects_to = a_checkpoint_file(), '"one"', True, ""
    server.asked.clear()
    server.breaks_after.clear()
    server.allow(settings)
    (tmp_path / "lists").mkdir()
    server.offer(settings, tmp_path / "lists")
    server.sha256 = hashlib.sha256(server.data).hexdigest()
    return server


@pytest.fixture
def root() -> User:
    return User.objects.create_superuser("root")


def fetched(user: User) -> ZooImport:
    run = zoo_import(key="ring", user=user)
    zoo_run(run.pk)
    return ZooImport.objects.get(pk=run.pk)


def leftovers(tmp_path: Path) -> list[str]:
    return [str(path) for path in (tmp_path / "assets").rglob("*") if path.is_file() and "quarantine" in path.parts]


def test_d8_a_model_is_fetched_examined_and_usable(models, root, tmp_path):
    run, asset = fetched(root), Asset.objects.get()
    assert (run.state, run.asset, run.reason) == ("ended", asset, "")
    assert (asset.state, asset.name, asset.sha256, asset.access) == ("approved", "rings", models.sha256, "public")
    assert not Upload.objects.exists() and leftovers(tmp_path) == [] and list(violations()) == []


def test_the_announced_checksum_is_compared(models, root, settings, tmp_path):
    models.offer(settings, tmp_path / "lists", sha256=models.sha256)
    assert fetched(root).state == "ended"


def test_d8_a_wrong_checksum_is_quarantined_with_both_and_nothing_is_kept(models, root, settings, tmp_path):
    models.offer(settings, tmp_path / "lists", sha256="0" * 64)
    run = fetched(root)
    assert run.state == "failed" and models.sha256 in run.reason and "0" * 64 in run.reason
    assert Asset.objects.get().state == "quarantined"
    assert not Upload.objects.exists() and leftovers(tmp_path) == [] and list(violations()) == []
    models.offer(settings, tmp_path / "lists", sha256=models.sha256)
    assert fetched(root).state == "ended"  # asked for again, it begins anew


def test_d8_a_connection_that_breaks_in_the_middle_is_gone_on_with(models, root):
    models.breaks_after[:] = [3 * PART + 150, 2 * PART]
    run = zoo_import(key="ring", user=root)
    zoo_run(run.pk)
    run.refresh_from_db()
    assert run.state == "waiting" and "ended early" in run.reason and zoo_waiting() == [run.pk]
    assert Upload.objects.get().received_bytes == 3 * PART
    zoo_run(run.pk)
    zoo_run(run.pk)
    run.refresh_from_db()
    assert run.state == "ended" and Asset.objects.get().sha256 == models.sha256
    assert [headers.get("Range") for headers in models.asked] == [None, f"bytes={3 * PART}-", f"bytes={5 * PART}-"]
    assert {headers.get("If-Range") for headers in models.asked[1:]} == {'"one"'}


def test_a_file_that_changed_meanwhile_begins_anew(models, root):
    models.breaks_after[:] = [3 * PART]
    run = zoo_import(key="ring", user=root)
    zoo_run(run.pk)
    models.tag, models.data = '"two"', a_checkpoint_file() + b""
    zoo_run(run.pk)
    run.refresh_from_db()
    assert run.state == "ended" and Asset.objects.get().state == "approved" and Upload.objects.count() == 0


def test_a_server_that_gives_only_the_whole_begins_anew(models, root):
    models.breaks_after[:], models.ranges = [3 * PART], False
    run = zoo_import(key="ring", user=root)
    zoo_run(run.pk)
    zoo_run(run.pk)
    run.refresh_from_db()
    assert run.state == "ended" and Asset.objects.get().sha256 == models.sha256 and list(violations()) == []


def test_a_server_that_never_gets_on_is_given_up_and_a_person_may_ask_again(models, root):
    models.breaks_after[:] = [2 * PART] + [0] * 4
    run = zoo_import(key="ring", user=root)
    for _ in range(5):
        zoo_run(run.pk)
    run.refresh_from_db()
    assert run.state == "failed" and "ended early" in run.reason and zoo_waiting() == []
    again = fetched(root)
    assert (again.pk, again.state) == (run.pk, "ended")
    assert models.asked[-1]["Range"] == f"bytes={2 * PART}-"


class KilledError(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("moment", ["upload_append", "upload_join", "asset_process"])
def test_a_worker_killed_at_any_moment_is_followed_by_another(models, root, monkeypatch, tmp_path, moment):
    run, real = zoo_import(key="ring", user=root), getattr(zoo, moment)

    def killed(*args: object, **given: object) -> None:
        real(*args, **given)
        raise KilledError

    monkeypatch.setattr(zoo, moment, killed)
    with pytest.raises(KilledError):
        zoo_run(run.pk)
    monkeypatch.setattr(zoo, moment, real)
    assert zoo_waiting() == []  # the worker may be alive yet
    zoo_run(run.pk)
    ZooImport.objects.update(touched_at=timezone.now() - timedelta(minutes=6))
    assert zoo_waiting() == [run.pk]
    zoo_run(run.pk)
    run.refresh_from_db()
    assert run.state == "ended" and Asset.objects.get().state == "approved"
    assert len(models.asked) == (2 if moment == "upload_append" else 1)
    assert leftovers(tmp_path) == [] and list(violations()) == []


def test_asked_for_twice_it_is_fetched_once(models, root):
    assert zoo_import(key="ring", user=root).pk == zoo_import(key="ring", user=root).pk
    assert ZooImport.objects.count() == 1


def test_a_model_of_another_size_than_listed_is_not_fetched(models, root, settings, tmp_path):
    models.offer(settings, tmp_path / "lists", size_bytes=7)
    run = fetched(root)
    assert run.state == "failed" and "the list says 7" in run.reason and not Asset.objects.exists()


def test_what_is_no_model_is_quarantined(models, root, tmp_path):
    models.data = b"<html>sign in</html>" * 100
    run = fetched(root)
    assert run.state == "failed" and run.reason and Asset.objects.get().state == "quarantined"
    assert leftovers(tmp_path) == []


def test_s14_a_redirect_to_where_nothing_is_fetched_is_refused(models, root):
    models.redirects_to = f"http://127.0.0.1:{models.port}/secret"
    run = fetched(root)
    assert run.state == "failed" and "fetches nothing from" in run.reason and not Asset.objects.exists()


def test_a_redirect_to_an_allowed_host_is_followed(models, root):
    models.redirects_to = models.address
    assert fetched(root).state == "ended" and len(models.asked) == 2


def test_d9_where_nothing_is_fetched_the_answer_says_what_to_do_by_hand(models, root, settings):
    settings.FETCH_HOSTS = []
    with pytest.raises(ForbiddenError) as refused:
        zoo_import(key="ring", user=root)
    for said in (
        "not fetched by this server",
        models.address,
        "models/Stable-diffusion/rings.safetensors",
        "import_asset",
    ):
        assert said in refused.value.message
    assert models.asked == [] and not ZooImport.objects.exists() and not Asset.objects.exists()


def test_d9_a_host_that_is_not_allowed_is_refused_before_anything_is_connected_to(models, root, settings):
    settings.FETCH_HOSTS = ["example.com"]
    with pytest.raises(ForbiddenError, match="not among those"):
        zoo_import(key="ring", user=root)
    assert models.asked == []


def test_d9_an_allowance_that_is_taken_back_ends_a_waiting_import(models, root, settings):
    run = zoo_import(key="ring", user=root)
    settings.FETCH_PRIVATE_NETWORKS = []
    zoo_run(run.pk)
    run.refresh_from_db()
    assert run.state == "failed" and models.asked == []


def test_a_model_with_conditions_is_not_fetched(models, root, settings, tmp_path):
    models.offer(settings, tmp_path / "lists", gated=True)
    with pytest.raises(ForbiddenError, match="account and consent"):
        zoo_import(key="ring", user=root)


def test_a_model_that_is_not_in_the_zoo_is_not_fetched(models, root):
    with pytest.raises(NotFoundError):
        zoo_import(key="http://127.0.0.1/", user=root)


def test_one_model_is_fetched_at_a_time(models, root):
    busy = ZooImport.objects.create(
        entry="other", state="running", created_at=timezone.now(), touched_at=timezone.now()
    )
    run = fetched(root)
    assert run.state == "waiting" and zoo_waiting() == []
    busy.delete()
    assert zoo_waiting() == [run.pk]


def test_the_chore_goes_on_with_what_waits(models, root, settings):
    settings.CELERY_TASK_ALWAYS_EAGER = True
    run = zoo_import(key="ring", user=root)
    resume_zoo()
    run.refresh_from_db()
    assert run.state == "ended"


def test_a_download_takes_the_memory_of_a_part_not_of_the_file(models, root, monkeypatch):
    monkeypatch.setattr(zoo, "PART_BYTES", 256 * 1024)
    models.data = bytes(24 * 1024**2)
    monkeypatch.setattr(zoo, "upload_join", lambda _: None)  # what follows is the intake's, and measured there
    run = zoo_import(key="ring", user=root)
    tracemalloc.start()
    zoo_run(run.pk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"peak {peak / 1024:.0f} KiB for {len(models.data) // 1024} KiB")
    assert Upload.objects.get().is_complete and peak < 8 * 1024**2


# --- the list that ships ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", zoo_entries(), ids=lambda entry: entry.key)
def test_every_model_of_the_list_can_be_fetched_or_says_why_not(entry: ZooEntry, settings):
    assert entry.kind in AssetKind.values and AssetKind(entry.kind) in FOLDER_OF_KIND
    assert urlsplit(entry.url).scheme == urlsplit(entry.page).scheme == "https"
    assert not entry.sha256 or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert re.fullmatch(r"[\w.-]+\.(safetensors|pth)", entry.filename, re.ASCII) and entry.licence and entry.title
    assert "by this server" in refusal_of(entry) or entry.gated
    settings.FETCH_HOSTS = ["huggingface.co", "github.com"]
    assert bool(refusal_of(entry)) is entry.gated


def test_keys_and_files_of_the_list_are_different():
    entries = zoo_entries()
    assert len({entry.key for entry in entries}) == len({(entry.kind, entry.name) for entry in entries}) == len(entries)
    assert {entry.kind for entry in entries} >= {"checkpoint", "vae", "lora", "controlnet", "upscaler"}
