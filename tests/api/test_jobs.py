"""The job API: representations, pages, refusals, isolation."""

from __future__ import annotations

import json
import uuid
from copy import copy
from io import BytesIO

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.test import Client
from PIL import Image

from accounts.services import token_revoke
from billing.models import LedgerTransaction
from common.identifiers import uuid7
from renderjobs.api.urls import urlpatterns
from renderjobs.models import Claim, IdempotencyRecord, RenderImage, RenderJob
from tests.factories import a_caller, a_checkpoint, a_job, a_platform
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db
READS = ("jobs/{}", "jobs/{}/images", "jobs/{}/events", "jobs/{}/grid")
WRITES = ("jobs/{}/cancel", "jobs/{}/approve", "jobs/{}/decline", "jobs/{}/pause", "jobs/{}/resume")
GOOD = {"kind": "txt2img", "request": {"prompt": "a ring", "width": 64, "height": 64, "steps": 4, "seed": 5}}


def client_of(caller) -> Client:
    return Client(headers={"Authorization": f"Bearer {caller.token.text}"})


@pytest.fixture
def caller():
    a_platform()
    return a_caller()


@pytest.fixture
def api(caller) -> Client:
    return client_of(caller)


def post(api: Client, body: object, path: str = "jobs", **headers: str):
    data = body if isinstance(body, str) else json.dumps(body)
    return api.post(f"/api/v1/{path}", data, content_type="application/json", headers=headers or None)


def test_a_job_is_accepted_with_its_number_of_images_and_links(api):
    answer = post(api, {**GOOD, "tags": {"shot": "12"}, "lane": "background"})
    job = answer.json()
    assert answer.status_code == 201 and answer.headers["Location"] == job["links"]["self"]
    assert (job["state"], job["images_total"], job["progress"], job["lane"]) == ("queued", 1, 0, "background")
    assert job["cost"] == {"amount": "0.000000", "currency": "USD"} and job["error"] is None


def test_an_image_is_shown_as_soon_as_it_is_delivered(api, caller):
    job = a_job(caller, n_iter=2)
    deliver(begun())
    first, second = api.get(f"/api/v1/jobs/{job.pk}/images").json()["results"]
    assert first["state"] == "delivered" and first["url"].startswith("http://testserver/files/")
    assert first["cost"]["amount"] == "0.002000" and first["gpu_seconds"] == 2.0
    assert second["state"] == "rendering" and second["url"] is None


def test_j15_the_same_key_gets_the_stored_answer_and_another_body_is_refused(api):
    first = post(api, GOOD, **{"Idempotency-Key": "k1"})
    RenderJob.objects.update(priority=9)
    again = post(api, GOOD, **{"Idempotency-Key": "k1"})
    other = post(api, {**GOOD, "priority": 1}, **{"Idempotency-Key": "k1"})
    assert again.json() == first.json() and again.headers["Idempotency-Replayed"] == "true"
    assert other.status_code == 409 and RenderJob.objects.count() == 1


def test_cancelling_twice_is_cancelling_once(api, caller):
    job = a_job(caller, n_iter=3)
    first, second = (post(api, {}, f"jobs/{job.pk}/cancel").json() for _ in range(2))
    assert first["state"] == second["state"] == "cancelled" and second["images_cancelled"] == 3


def test_lists_are_paged_from_the_newest_and_filtered(api, caller):
    jobs = [a_job(caller, seed=number) for number in range(5)]
    page = api.get("/api/v1/jobs?limit=2").json()
    following = api.get(page["next"]).json()
    assert [row["id"] for row in page["results"] + following["results"]] == [str(job.pk) for job in jobs[:0:-1]]
    post(api, {**GOOD, "tags": {"shot": "7"}})
    assert len(api.get("/api/v1/jobs?tag=shot%3D7").json()["results"]) == 1
    assert api.get("/api/v1/jobs?state=succeeded").json() == {"results": [], "next": None}
    assert api.get("/api/v1/jobs?state=nope").status_code == 422


@pytest.mark.parametrize("count", [10, 1000])
def test_c5_lists_take_the_same_number_of_queries_for_any_number_of_rows(
    api, caller, count, django_assert_max_num_queries
):
    job = a_job(caller, n_iter=count)
    begun()
    job.refresh_from_db()
    copies = [copy(job) for _ in range(count - 1)]
    for another in copies:
        another.pk = uuid7()
    RenderJob.objects.bulk_create(copies)
    api.get(f"/api/v1/jobs/{job.pk}")  # the token's last use is written at most once a minute
    for path, queries in ((f"jobs/{job.pk}/images", 3), ("jobs", 2), ("jobs?state=running", 2)):
        with django_assert_max_num_queries(1 + queries):
            rows = api.get(f"/api/v1/{path}{'&' if '?' in path else '?'}limit=1000").json()["results"]
        assert len(rows) == count


def test_the_list_shows_each_jobs_own_progress(api, caller):
    slow, fast, queued = a_job(caller, n_iter=16), a_job(caller, n_iter=4), a_job(caller)
    for step in (1, 3):
        Claim.objects.filter(pk=begun().claim_id).update(step=step, steps=4)
    shown = {row["id"]: row["progress"] for row in api.get("/api/v1/jobs").json()["results"]}
    assert shown == {str(slow.pk): 0.25, str(fast.pk): 0.75, str(queued.pk): 0.75}


def test_the_contact_sheet_of_an_ended_job_has_the_size_that_is_told(api, caller):
    job = a_job(caller, n_iter=3)
    assert api.get(f"/api/v1/jobs/{job.pk}/grid").status_code == 409
    batch = begun()
    for position in range(3):
        data = BytesIO()
        Image.new("RGB", (64, 64), "red").save(data, "PNG")
        default_storage.save(f"{position}.png", ContentFile(data.getvalue()))
        deliver(batch, position)
    grid = api.get(f"/api/v1/jobs/{job.pk}/grid").json()
    sheet = Image.open(BytesIO(b"".join(Client().get(grid["url"]).streaming_content)))
    assert sheet.size == (grid["width"], grid["height"]) == (128, 128) and grid["images"] == 3


def test_events_are_read_on_from_the_last_one_seen(api, caller):
    job = a_job(caller, n_iter=2)
    deliver(begun())
    page = api.get(f"/api/v1/jobs/{job.pk}/events?limit=4").json()
    rest = api.get(page["next"]).json()
    events = page["results"] + rest["results"]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1)) and rest["next"] is None
    assert events[0]["to_state"] == "queued" and events[-1] == {**events[-1], "image_index": 0, "to_state": "delivered"}


@pytest.mark.parametrize("tag", ["shot=7", "shot:7", "12=a:b", 'a"b.c=x', "a:b=c"])
def test_jobs_are_found_by_tag(api, tag):
    key, _, value = tag.partition("=" if "=" in tag else ":")
    wanted = post(api, {**GOOD, "tags": {key: value}}).json()["id"]
    post(api, {**GOOD, "tags": {key: value + "0"}})
    assert [row["id"] for row in api.get("/api/v1/jobs", {"tag": tag}).json()["results"]] == [wanted]


@pytest.mark.parametrize("query", ["tag=nope", "tag=%00=1", "project=%00", "before=nope", "limit=0", "limit=1001"])
def test_a_filter_that_cannot_be_understood_is_named(api, query):
    (error,) = api.get(f"/api/v1/jobs?{query}").json()["errors"]
    assert error["pointer"] == f"#/{query.partition('=')[0]}"


def test_c2_a_status_read_takes_two_queries_beside_the_token(api, caller, django_assert_max_num_queries):
    job = a_job(caller, n_iter=3)
    begun()
    api.get(f"/api/v1/jobs/{job.pk}")  # the token's last use is written at most once a minute
    with django_assert_max_num_queries(1 + 2):
        assert api.get(f"/api/v1/jobs/{job.pk}").json()["state"] == "running"


WRONG = {
    "unknown checkpoint": ({"sd_model_checkpoint": "nope"}, "#/request/sd_model_checkpoint", "'nope' is unknown"),
    "unknown checkpoint among the options": (
        {"override_settings": {"sd_model_checkpoint": "nope"}},
        "#/request/override_settings/sd_model_checkpoint",
        "'nope' is unknown",
    ),
    "unknown option": (
        {"override_settings": {"sd_nonsense": "x"}},
        "#/request/override_settings/sd_nonsense",
        "unknown or not supported",
    ),
    "options as a list": ({"override_settings": []}, "#/request/override_settings", "must be an object"),
    "an unknown schedule": ({"scheduler": "nope"}, "#/request/scheduler", "'nope' is unknown"),
    "the older name of the sampler": ({"sampler_index": "nope"}, "#/request/sampler_index", "'nope' is unknown"),
    "a giant number where a fraction belongs": ({"cfg_scale": 10**400}, "#/request/cfg_scale", "accepted are"),
    "a name with a slash": ({"a/b": 1}, "#/request/a~1b", "unknown or not supported"),
    "width 0": ({"width": 0}, "#/request/width", "accepted are 16 to 8192"),
    "height 100000": ({"height": 100_000}, "#/request/height", "accepted are 16 to 8192"),
    "steps -1": ({"steps": -1}, "#/request/steps", "accepted are 1 to 1000"),
    "steps 10000": ({"steps": 10_000}, "#/request/steps", "accepted are 1 to 1000"),
    "batch_size 1000000": ({"batch_size": 10**6}, "#/request/batch_size", "accepted are 1 to 1000"),
    "steps as a text": ({"steps": "20"}, "#/request/steps", "a whole number"),
    "prompt as a list": ({"prompt": ["a"]}, "#/request/prompt", "a text"),
    "a giant number": ({"seed": 10**400}, "#/request/seed", "accepted are"),
    "an unknown sampler": ({"sampler_name": "nope"}, "#/request/sampler_name", "'nope' is unknown"),
    "an unknown field": ({"hr_size": 2}, "#/request/hr_size", "unknown or not supported"),
    "too many pixels": ({"width": 8192, "height": 8192}, "#/request/width", "exceeds the limit"),
    "a NUL in the prompt": ({"prompt": "a\x00b"}, "#/request/prompt", "not text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_g2_a_wrong_field_is_named_and_nothing_is_stored(api, name):
    changes, pointer, message = WRONG[name]
    answer = post(api, {**GOOD, "request": {**GOOD["request"], **changes}})
    (error,) = answer.json()["errors"]
    assert answer.status_code == 422 and answer.headers["Content-Type"] == "application/problem+json"
    assert error["pointer"] == pointer and message in error["detail"]
    assert (
        not RenderJob.objects.exists() and not RenderImage.objects.exists() and not LedgerTransaction.objects.exists()
    )


def test_g2_all_wrong_fields_are_named_at_once(api):
    answer = post(api, {"kind": "video", "request": {"steps": 0, "nope": 1}, "priority": "high", "extra": 1})
    pointers = {error["pointer"] for error in answer.json()["errors"]}
    assert pointers == {"#/kind", "#/request/steps", "#/request/nope", "#/priority", "#/extra"}


@pytest.mark.parametrize(
    ("field", "value"),
    [("tags", {"a": "\x00"}), ("tags", {"a\x00": "b"}), ("tags", [1]), ("tags", {"a": 1}), ("project", "\x00"),
     ("project", "nope"), ("project", 5), ("lane", {}), ("lane", "fast"), ("priority", 10**400), ("priority", True),
     ("priority", False), ("kind", "video"), ("kind", []), ("kind", None), ("request", [])],
)  # fmt: skip
def test_g2_a_wrong_field_beside_the_request_is_named_and_nothing_is_stored(api, field, value):
    answer = post(api, {**GOOD, field: value})
    (error,) = answer.json()["errors"]
    assert answer.status_code == 422 and error["pointer"] == f"#/{field}" and field in error["detail"].lower()
    assert not RenderJob.objects.exists() and not IdempotencyRecord.objects.exists()


def test_g2_a_kind_that_is_not_supported_is_told_what_is(api):
    (error,) = post(api, {**GOOD, "kind": "video"}).json()["errors"]
    assert error["detail"] == "kind is 'video'; accepted are txt2img, img2img, extras, detect."


def test_the_older_name_of_the_sampler_is_understood(api):
    job = post(api, {**GOOD, "request": {**GOOD["request"], "sampler_index": "DPM++ 2M Karras"}}).json()
    assert (job["request"]["sampler"], job["request"]["schedule"]) == ("DPM++ 2M", "Karras")


@pytest.mark.parametrize(
    "body",
    [
        "{nope",
        '{"kind": "txt2img", "request": {}, "tags": {"a": "\\ud800"}}',
        '{"\\ud800": 1}',
        "[]",
        '"a"',
        "",
        '{"kind": "txt2img", "request": {"cfg_scale": NaN}}',
        "[" * 100_000,
    ],
)
def test_s12_a_body_that_is_no_json_object_is_refused(api, body):
    answer = post(api, body)
    assert answer.status_code in (400, 422) and answer.json()["code"] in ("parse_error", "invalid_request")
    assert not RenderJob.objects.exists()


def test_s8_a_body_over_the_limit_is_refused_before_parsing(api, settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    answer = post(api, {"kind": "x" * 2000})
    assert answer.status_code == 413 and answer.json()["code"] == "body_too_large"


def test_s1_no_call_answers_without_a_usable_token(caller):
    job = a_job(caller)
    token_revoke(token=caller.token)
    for header in (None, "Bearer nope", f"Bearer {caller.token.text}"):
        nobody = Client(headers={"Authorization": header} if header else None)
        for path in ("jobs", "usage", *(path.format(job.pk) for path in READS)):
            answer = nobody.get(f"/api/v1/{path}")
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        assert post(nobody, GOOD).status_code == 401


def test_p12_a_token_without_the_scope_is_refused(caller):
    reader = client_of(a_caller("team-a", "bob", scopes=["jobs:read"]))
    job = a_job(caller)
    assert reader.get(f"/api/v1/jobs/{job.pk}").status_code == 200
    assert post(reader, GOOD).status_code == 403 and post(reader, {}, f"jobs/{job.pk}/cancel").status_code == 403


@pytest.mark.parametrize("role", ["viewer", "finance"])
def test_who_only_reads_changes_no_job_whatever_the_token_was_given(caller, role):
    job, reader = a_job(caller), client_of(a_caller("team-a", "rosa", role=role))
    refused = {post(reader, {}, path.format(job.pk)).status_code for path in WRITES}
    job.refresh_from_db()
    assert refused == {403} and (job.state, job.paused_at) == ("queued", None)
    assert post(reader, GOOD).status_code == 403 and RenderJob.objects.count() == 1


@pytest.mark.parametrize(("role", "status"), [("lead", 200), ("member", 200), ("viewer", 200), ("finance", 403)])
def test_p11_who_reads_money_reads_no_jobs(caller, role, status):
    job, reader = a_job(caller), client_of(a_caller("team-a", "rosa", role=role))
    paths = [
        "/api/v1/jobs",
        *(f"/api/v1/{path.format(job.pk)}" for path in ("jobs/{}", "jobs/{}/images", "jobs/{}/events")),
    ]
    assert {reader.get(path).status_code for path in paths} == {status}
    assert reader.get("/api/v1/usage").status_code == 200


def test_s2_another_teams_job_and_a_random_id_get_the_same_answer(caller):
    stranger = client_of(a_caller("team-b", "eve"))
    job = a_job(caller)
    for call, path in [*((stranger.get, path) for path in READS), *((stranger.post, path) for path in WRITES)]:
        foreign, random, nonsense = (call(f"/api/v1/{path.format(key)}") for key in (job.pk, uuid.uuid4(), "nope"))
        assert foreign.status_code == 404 and foreign.json() == random.json() == nonsense.json()
    job.refresh_from_db()
    assert job.state == "queued"


def test_s2_the_calls_above_are_all_that_name_a_job():
    routes = {str(route.pattern) for route in urlpatterns if "job_id" in str(route.pattern)}
    assert routes == {path.format("<str:job_id>") for path in (*READS, *WRITES)}


def test_s17_a_signed_address_is_bound_to_its_object_and_expires(api, caller, settings):
    a_job(caller)
    default_storage.save("0.png", ContentFile(b"picture"))
    deliver(begun())
    url = api.get(f"/api/v1/jobs/{RenderJob.objects.get().pk}/images").json()["results"][0]["url"]
    answer = Client().get(url)
    assert b"".join(answer.streaming_content) == b"picture" and answer.headers["X-Content-Type-Options"] == "nosniff"
    assert Client().get(url[:-1] + ("A" if url[-1] != "A" else "B")).status_code == 404
    settings.FILE_URL_LIFETIME_SECONDS = -1
    assert Client().get(url).status_code == 404


def test_the_usage_of_the_team_is_the_ledgers(api, caller):
    a_job(caller)
    deliver(begun())
    (row,) = api.get("/api/v1/usage?group_by=member,model").json()["results"]
    assert row == {
        "member": "ada", "model": "mini", "images": 1, "gpu_seconds": 2.0, "amount": "0.002000", "deployment": "0.000000",
        "currency": "USD",
    }  # fmt: skip
    assert client_of(a_caller("team-b", "eve")).get("/api/v1/usage").json()["results"] == []
    assert len(api.get("/api/v1/usage?group_by=team,team").json()["results"]) == 1
    for query in ("group_by=nope", "from=nope", "from=2026-13-01", "to=9999-12-31T23:59:59-23:59"):
        assert api.get(f"/api/v1/usage?{query}").status_code == 422


def test_s5_money_owner_and_state_cannot_be_written(api):
    answer = post(api, {**GOOD, "state": "succeeded", "cost": {"amount": 0}, "team": "team-b"})
    assert answer.status_code == 422 and not RenderJob.objects.exists() and not IdempotencyRecord.objects.exists()


def test_what_the_checkpoints_family_cannot_do_is_named_where_it_was_written(api):
    a_checkpoint("flow", family="flux", is_default=False)
    request = {"prompt": "a red circle", "negative_prompt": "blurry", "sampler_name": "Euler"}
    options = {"sd_model_checkpoint": "flow", "CLIP_stop_at_last_layers": 2}
    answer = post(api, {"kind": "txt2img", "request": {**request, "override_settings": options}})
    assert (answer.status_code, RenderJob.objects.count()) == (422, 0)
    assert {error["pointer"] for error in answer.json()["errors"]} == {
        "#/request/negative_prompt",
        "#/request/override_settings/CLIP_stop_at_last_layers",
    }
