"""Pictures in an S3 store: the same path as on disk, and addresses that the store signs itself."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
import requests
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from moto.server import ThreadedMotoServer

from renderjobs.files import file_url
from tests.common.test_folders import NAMES, names
from tests.gpuworker.test_runner import threads_of_the_runners_end  # noqa: F401  a fixture

BUCKET = "pictures"


@pytest.fixture(scope="module")
def s3_address():
    """A server on loopback that speaks S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(autouse=True)
def s3(s3_address, settings, monkeypatch, storage_of_its_own):
    """What ``STORAGE_URL=s3://pictures/studio?endpoint=…`` makes of the settings."""
    from config.settings import storages as module

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client = boto3.client("s3", endpoint_url=s3_address, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    address = urlsplit(f"s3://{BUCKET}/studio?endpoint={s3_address}")
    monkeypatch.setattr(module, "_url", address)
    monkeypatch.setattr(module, "_options", {key: values[-1] for key, values in parse_qs(address.query).items()})
    settings.STORAGES = {**settings.STORAGES, "default": module._storage("pictures")}
    return client


def test_p7_a_picture_is_stored_under_the_prefix_and_read_back(s3):
    key = default_storage.save("1/a.png", ContentFile(b"picture"))
    listed = s3.list_objects_v2(Bucket=BUCKET)["Contents"]
    assert "studio/pictures/1/a.png" in [entry["Key"] for entry in listed]
    assert default_storage.open(key).read() == b"picture"
    default_storage.delete(key)


def test_s17_the_address_of_a_picture_is_signed_and_expires():
    key = default_storage.save("1/b.png", ContentFile(b"picture"))
    url = file_url(key, base="http://testserver")
    query = parse_qs(urlsplit(url).query)
    assert requests.get(url, timeout=60).content == b"picture"
    assert query["X-Amz-Expires"] == ["3600"] and "X-Amz-Signature" in query


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_d7_pages_of_a_folder_have_everything_once_with_one_question_each(s3, limit, monkeypatch):
    for name in NAMES:
        default_storage.save(f"1/files/{name}", ContentFile(b"x"))
    client, asked = default_storage.connection.meta.client, []
    ask = client.list_objects_v2
    monkeypatch.setattr(client, "list_objects_v2", lambda **given: asked.append(given) or ask(**given))
    found = names(default_storage, "1/files", limit)
    assert found == ["a.png", "a/", "a0.png", "b.txt", "b/", "c d.png", "z.png"]
    assert len(asked) <= -(-len(found) // limit) + 1
    # A store goes on inside of a folder that it is told to start after; only behind all in it it has left it.
    assert not [given for given in asked if given.get("StartAfter", "").endswith("/")]
    assert names(default_storage, "1/files", limit, begins="a") == ["a.png", "a/", "a0.png"]
    assert names(default_storage, "1/files/a", limit) == ["1.png", "deep/"]
    assert names(default_storage, "9/files", limit) == []


def test_s13_what_is_no_picture_is_saved_not_shown(s3):
    key = default_storage.save("1/files/notes.txt", ContentFile(b"<script>"))
    answer = requests.get(file_url(key, base=""), timeout=60)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="notes.txt"'
    picture = default_storage.save("1/files/c.png", ContentFile(b"picture"))
    answer = requests.get(file_url(picture, base="", to_save=True), timeout=60)
    assert answer.headers["Content-Type"] == "image/png" and "attachment" in answer.headers["Content-Disposition"]


@pytest.mark.django_db(transaction=True)
def test_a_job_is_delivered_into_the_store(s3, settings, tmp_path):
    import hashlib

    from django.core.files.storage import storages

    from tests.factories import a_checkpoint, a_job
    from tests.gpuworker.test_runner import WEIGHTS, a_runner

    settings.WORKER_CACHE_DIR = tmp_path / "cache"
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    asset = a_checkpoint(sha256=sha256, file_key="checkpoint/w.safetensors")
    storages["assets"].save(asset.file_key, ContentFile(WEIGHTS))
    job = a_job(n_iter=3)
    a_runner().run_until_empty()
    job.refresh_from_db()
    assert job.state == "succeeded"
    for image in job.images.all():
        data = requests.get(file_url(image.file_key, base=""), timeout=60).content
        assert hashlib.sha256(data).hexdigest() == image.sha256
