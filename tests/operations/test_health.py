"""What a probe learns without a credential."""

from __future__ import annotations

import pytest
from django.test import Client

from fleet.services import worker_register
from tests.factories import a_pool


def test_the_web_process_answers_without_a_database():
    assert Client().get("/healthz").json() == {"status": "ok"}


@pytest.mark.django_db
def test_the_platform_is_ready_while_a_worker_that_can_claim_is_alive(broker):
    pool = a_pool()
    assert Client().get("/readyz").json() == {
        "status": "not ready", "database": True, "broker": True, "worker": False
    }  # fmt: skip
    worker = worker_register(name="w1", pool=pool, device="cpu")
    assert Client().get("/readyz").status_code == 200
    worker.draining = True
    worker.save()
    assert Client().get("/readyz").status_code == 503


@pytest.mark.django_db
def test_the_platform_is_not_ready_without_a_broker(settings, tmp_path):
    settings.REDIS_URL = f"unix://{tmp_path}/none.sock"
    answer = Client().get("/readyz")
    assert answer.status_code == 503 and answer.json()["broker"] is False
