"""Weights that somebody has put below ``imports/`` of the asset storage with the store's own tools."""

from __future__ import annotations

import io

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.core.management import CommandError, call_command

from accounts.services import team_ensure
from assets.models import Asset
from tests.weights import a_checkpoint_file

pytestmark = pytest.mark.django_db
OTHER = a_checkpoint_file(fill=b"\1")


@pytest.fixture(params=["disk", "object store"])
def store(request, settings) -> object:
    if request.param == "object store":
        backend = {"BACKEND": "tests.assets.object_store.ObjectStore"}
        settings.STORAGES = {**settings.STORAGES, "assets": backend}
    storage = storages["assets"]
    for name, data in (("a/dream.safetensors", a_checkpoint_file()), ("a/b/other.safetensors", OTHER)):
        storage.save(f"imports/{name}", ContentFile(data))
    storage.save("imports/a/notes.txt", ContentFile(b"hello"))
    return storage


def take_in(what: str, *arguments: str) -> list[str]:
    out = io.StringIO()
    call_command("import_asset", what, "--kind", "checkpoint", *arguments, stdout=out)
    return [line.split()[0] for line in out.getvalue().splitlines()]


def test_a_prefix_of_the_storage_is_taken_in_and_stays(store):
    team_ensure("studio")
    assert take_in("storage:a/", "--team", "studio") == ["other", "dream"]
    assert set(Asset.objects.values_list("name", "state", "access")) == {
        ("dream", "approved", "teams"), ("other", "approved", "teams"),
    }  # fmt: skip
    assert store.exists("imports/a/dream.safetensors") and take_in("storage:", "--team", "studio") == ["other", "dream"]
    assert Asset.objects.count() == 2


def test_one_object_may_get_another_name(store):
    assert take_in("storage:a/dream.safetensors", "--name", "rêve") == ["rêve"]
    with pytest.raises(CommandError, match="One name for 2 files"):
        take_in("storage:a", "--name", "x")


def test_what_cannot_be_taken_in_is_told_and_the_rest_is_done(store):
    store.save("imports/a/c.safetensors", ContentFile(b"no weights"))
    with pytest.raises(CommandError, match="1 of 3 were not taken in"):
        take_in("storage:a")
    assert sorted(Asset.objects.values_list("state", flat=True)) == ["approved", "approved", "quarantined"]


@pytest.mark.parametrize("prefix", ["../checkpoint", "a/../../checkpoint", "a\\..", "nothing", "a/notes.txt"])
def test_s16_a_prefix_leads_nowhere_else(store, prefix):
    store.save("checkpoint/x.safetensors", ContentFile(a_checkpoint_file()))
    with pytest.raises(CommandError, match="leads out of|There is no"):
        take_in(f"storage:{prefix}")
    assert not Asset.objects.exists()
