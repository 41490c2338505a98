"""The page of the model zoo: what it says of each model, one click to fetch, and the answer where nothing may be fetched."""

from __future__ import annotations

import hashlib

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from assets.models import Asset
from assets.uploads import upload_begin
from assets.zoo_models import ZooImport
from tests.admin.pages import client_of, page
from tests.assets.zoo_server import model_server
from tests.factories import a_checkpoint
from tests.weights import a_checkpoint_file

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def server():
    with model_server() as models:
        yield models


@pytest.fixture
def models(server, settings, tmp_path):
    server.data = a_checkpoint_file()
    server.asked.clear()
    server.allow(settings)
    (tmp_path / "lists").mkdir()
    server.offer(settings, tmp_path / "lists")
    settings.CELERY_TASK_ALWAYS_EAGER = True
    return server


@pytest.fixture
def root() -> Client:
    return client_of(User.objects.create_superuser("root"))


def zoo(client: Client) -> str:
    return client.get(reverse("admin:assets_zoo")).content.decode()


def test_d8_one_click_fetches_a_model_and_the_page_says_that_it_is_here(
    models, root, django_capture_on_commit_callbacks
):
    assert "Not verified: no checksum" in zoo(root) and ">Import</button>" in zoo(root)
    with django_capture_on_commit_callbacks(execute=True):
        root.post(reverse("admin:assets_zoo"), {"entry": "ring"})
    asset = Asset.objects.get()
    assert asset.sha256 == hashlib.sha256(models.data).hexdigest() and asset.state == "approved"
    body = zoo(root)
    assert page("assets_asset", "change", asset.pk) in body and ">Import</button>" not in body
    assert "ring" in root.get(page("assets_zooimport", "changelist")).content.decode()


def test_progress_is_shown_while_it_is_fetched(models, root):
    upload = upload_begin(uploaded_by=User.objects.get(), name="rings", kind="checkpoint", size_bytes=200)
    type(upload).objects.update(received_bytes=50)
    ZooImport.objects.create(
        entry="ring", state="running", asset=upload.asset, created_at=timezone.now(), began_at=timezone.now(),
        touched_at=timezone.now(), reason="The address's answer ended early.",
    )  # fmt: skip
    body = zoo(root)
    assert 'value="25"' in body and "data-live-until-ended" in body and "It is tried again" in body


def test_d9_where_nothing_is_fetched_the_page_says_what_to_do_by_hand(models, root, settings):
    settings.FETCH_HOSTS = []
    body = zoo(root)
    assert "Addresses are not fetched by this server." in body and ">Import</button>" not in body
    assert models.address in body and "models/Stable-diffusion/rings.safetensors" in body
    answer = root.post(reverse("admin:assets_zoo"), {"entry": "ring"}, follow=True).content.decode()
    assert "not fetched by this server" in answer and not ZooImport.objects.exists()


@pytest.mark.parametrize("key", ["", "nothing", "http://127.0.0.1/", "ring\x00"])
def test_what_is_not_in_the_zoo_is_refused(models, root, key):
    answer = root.post(reverse("admin:assets_zoo"), {"entry": key}, follow=True).content.decode()
    assert "no such model in the zoo" in answer and not ZooImport.objects.exists()


def test_what_is_fetched_is_for_superusers_only(models):
    staff = client_of(User.objects.create_user("staff", is_staff=True))
    for answer in (staff.get(reverse("admin:assets_zoo")), staff.post(reverse("admin:assets_zoo"), {"entry": "ring"})):
        assert answer.status_code == 403
    assert not ZooImport.objects.exists() and models.asked == []


def test_c5_the_page_costs_the_same_questions_however_much_was_fetched(root):
    counts = []
    for more in (5, 200):
        for number in range(more):
            a_checkpoint(f"{more}-{number}")
        ZooImport.objects.bulk_create(
            ZooImport(entry="sd15", state="failed", reason="no", created_at=timezone.now()) for _ in range(more)
        )
        zoo(root)
        with CaptureQueriesContext(connection) as queries:
            body = zoo(root)
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 8 and "Stable Diffusion XL 1.0" in body
