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
    assert requests.get(url, timeout=10).content == b"picture"
    assert query["X-Amz-Expires"] == ["3600"] and "X-Amz-Signature" in query


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
        data = requests.get(file_url(image.file_key, base=""), timeout=10).content
        assert hashlib.sha256(data).hexdigest() == image.sha256
