"""What a team keeps is counted as it comes and goes, at every door, and never passes its quota (M12, S23)."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from PIL import Image

from accounts.models import ApiToken, Role, Team, User
from assets.intake import asset_receive
from assets.models import Access, Asset, Upload
from assets.uploads import upload_begin, upload_give_up
from billing.errors import QuotaExceededError
from billing.models import Hold, Quota, StoredBytes
from billing.quotas import uses_of
from operations.invariants import m12_stored_bytes_are_those_of_the_files, walk
from renderjobs.data_directory import file_import
from renderjobs.delivery import StoredAttachment, image_deliver
from renderjobs.inputs import input_store, picture_from_bytes
from renderjobs.models import InputFile, RenderImage, RenderJob, TeamFile
from renderjobs.models.jobs import Source
from renderjobs.submission import job_cancel, job_submit
from renderjobs.team_files import file_remove, file_upload
from renderjobs.work import image_bytes
from tests.billing.budgets import named_by
from tests.factories import a_caller, a_job, a_platform, a_request
from tests.renderjobs.test_delivery import begun, deliver, picture
from tests.renderjobs.test_races import at_once

pytestmark = pytest.mark.django_db
GIB = 1024**3


def a_quota(limit: int, **whose) -> Quota:
    return Quota.objects.create(measure="stored_bytes", limit=limit, **whose)


def used(quota: Quota) -> int:
    (use,) = uses_of([quota])
    return use.used


def in_step() -> bool:
    return not list(m12_stored_bytes_are_those_of_the_files())


def a_png(colour: str = "red") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, "PNG")
    return data.getvalue()


def with_attachment(size: int):
    one = StoredAttachment(role="mask", key="m.png", sha256="1" * 64, size_bytes=size, width=64, height=64)
    return replace(picture("a.png"), size_bytes=1000, attachments=(one,))


def test_m12_delivered_pictures_and_what_came_along_are_counted_and_the_rest_is_expected():
    caller = a_caller()
    quota = a_quota(GIB, team=caller.team)
    job = a_job(caller, n_iter=2)
    each = RenderJob.objects.get().image_bytes
    assert used(quota) == 2 * each > 2 * 64 * 64 * 3
    batch = begun()
    image_deliver(batch=batch, image=batch.images[0], picture=with_attachment(500), gpu_us=1)
    assert used(quota) == 1500 + each
    job_cancel(job=job)
    assert used(quota) == 1500 and in_step()


def test_m12_a_job_that_might_not_fit_is_refused_and_nothing_is_held_or_kept():
    caller = a_caller()
    quota = a_quota(2 * image_bytes(a_request()), team=caller.team)
    with pytest.raises(QuotaExceededError) as refused:
        a_job(caller, n_iter=3)
    assert refused.value.members() == {
        "quota": "stored_bytes", "whose": "team", "limit": quota.limit, "used": 0, "asked": quota.limit // 2 * 3,
        "resets_at": None,
    }  # fmt: skip
    assert "files are deleted" in refused.value.message
    assert not RenderJob.objects.exists() and not Hold.objects.exists() and not RenderImage.objects.exists()
    a_job(caller, n_iter=2)
    with pytest.raises(QuotaExceededError):
        a_job(caller)


def test_a_picture_is_never_larger_than_what_was_expected_of_it():
    """Noise, which no compression makes smaller, with the longest infotext."""
    request = a_request(width=128, height=64, prompt="\N{GRINNING FACE}" * 3000, negative_prompt="x" * 16000)
    noise = Image.effect_noise((128, 64), 200).convert("RGB")
    data = io.BytesIO()
    noise.save(data, "PNG", compress_level=1)
    text = len(f"{request.prompt}{request.negative_prompt}".encode())
    assert len(data.getvalue()) + text + 4096 < image_bytes(request)


def test_m12_files_of_a_team_are_counted_until_they_are_deleted():
    caller = a_caller()
    quota, own = a_quota(10_000, team=caller.team), a_quota(10_000, team=caller.team, user=caller.user)
    file = file_upload(team=caller.team, folder="", name="a.txt", file=io.BytesIO(b"x" * 300), user=caller.user)
    file_upload(team=caller.team, folder="", name="a.txt", file=io.BytesIO(b"x" * 300), user=caller.user)
    file_upload(team=None, folder="", name="everybodys.txt", file=io.BytesIO(b"x" * 999), user=caller.user)
    assert used(quota) == used(own) == 300 and in_step()
    file_remove(file_id=file.pk)
    file_remove(file_id=file.pk)
    assert used(quota) == used(own) == 0 and in_step()


def test_m12_a_file_that_does_not_fit_leaves_no_trace_and_the_browser_says_why():
    caller = a_caller(role=Role.LEAD)
    quota = a_quota(100, team=caller.team)
    User.objects.filter(pk=caller.user.pk).update(is_staff=True)
    client = Client()
    client.force_login(User.objects.get(pk=caller.user.pk))
    address = reverse("admin:renderjobs_files_upload", args=[caller.team.pk])
    body = {"files": ContentFile(b"x" * 101, name="a.txt"), "folder": ""}
    answer = client.post(address, body, headers={"X-Requested-With": "upload"})
    assert answer.status_code == 422
    (said,) = answer.json()["said"]
    assert "stored_bytes" in said and "100;" in said and "0 is used and 101 was asked for" in said
    assert not TeamFile.objects.exists() and used(quota) == 0


def test_m12_an_imported_picture_counts_and_one_that_does_not_fit_is_left_with_the_reason(tmp_path):
    caller = a_caller()
    data = a_png()
    quota = a_quota(len(data), team=caller.team)
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        (tmp_path / name).write_bytes(a_png(colour))
    taken = [
        file_import(tmp_path / name, root=tmp_path, team=caller.team, folder="data", public=False)
        for name in ("a.png", "b.png")
    ]
    assert [one.done for one in taken] == [True, False] and "stored_bytes" in taken[1].note
    assert used(quota) == len(data) and in_step()


def test_m12_pictures_that_callers_send_are_counted_once():
    caller = a_caller()
    quota, upload = a_quota(GIB, team=caller.team), picture_from_bytes(a_png())
    input_store(team=caller.team, uploads=[upload])
    input_store(team=caller.team, uploads=[upload])
    assert used(quota) == len(upload.data) and InputFile.objects.count() == 1 and in_step()


def while_an_object_is_written(monkeypatch, act: Callable[[], object]) -> None:
    """Somebody does something between the first object of a test and its row."""
    really_save, acts = FileSystemStorage.save, [act]

    def save(self: FileSystemStorage, name: str, content: ContentFile) -> str:
        key = really_save(self, name, content)
        if acts:
            acts.pop()()
        return key

    monkeypatch.setattr(FileSystemStorage, "save", save)


def objects_of(team: Team) -> list[str]:
    return list(walk(f"{team.pk}/inputs"))


def test_of_two_who_bring_the_same_picture_one_object_and_one_row_stay(monkeypatch):
    team, upload = a_caller().team, picture_from_bytes(a_png())
    while_an_object_is_written(monkeypatch, lambda: input_store(team=team, uploads=[upload]))
    input_store(team=team, uploads=[upload])
    assert objects_of(team) == [InputFile.objects.get().file_key] and in_step()


def test_a_picture_for_which_there_is_no_room_any_more_leaves_no_object(monkeypatch):
    team, upload = a_caller().team, picture_from_bytes(a_png())
    quota = a_quota(GIB, team=team)
    while_an_object_is_written(monkeypatch, lambda: Quota.objects.update(limit=0))
    with pytest.raises(QuotaExceededError):
        input_store(team=team, uploads=[upload])
    assert objects_of(team) == [] and not InputFile.objects.exists() and used(quota) == 0


def img2img(caller, data: bytes):
    body = {"init_images": [base64.b64encode(data).decode()], "prompt": "x", "width": 64, "height": 64, "steps": 2}
    client = Client(headers={"Authorization": f"Bearer {caller.token.text}"})
    return client.post("/api/v1/jobs", {"kind": "img2img", "request": body}, content_type="application/json")


def test_m12_a_refused_job_keeps_none_of_the_pictures_it_brought():
    a_platform()
    caller = a_caller()
    quota = a_quota(image_bytes(a_request()) + 100, team=caller.team)
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 200).convert("RGB").save(noise, "PNG")
    answer = img2img(caller, noise.getvalue())
    assert answer.status_code == 429 and answer.json()["quota"] == "stored_bytes"
    assert answer.json()["asked"] > image_bytes(a_request())
    assert not InputFile.objects.exists() and not RenderJob.objects.exists() and used(quota) == 0
    Quota.objects.update(limit=GIB)
    assert img2img(caller, noise.getvalue()).status_code == 201
    assert used(quota) == len(noise.getvalue()) + RenderJob.objects.get().image_bytes and in_step()


def test_m12_a_model_given_to_a_team_counts_from_its_announcement_until_it_is_given_up():
    lead = a_caller(role=Role.LEAD)
    quota = a_quota(5000, team=lead.team)
    upload = upload_begin(
        uploaded_by=lead.user, name="m.safetensors", kind="lora", size_bytes=4000, access="teams", teams=(lead.team,)
    )
    assert used(quota) == 4000
    with pytest.raises(QuotaExceededError):
        upload_begin(
            uploaded_by=lead.user,
            name="n.safetensors",
            kind="lora",
            size_bytes=1001,
            access="teams",
            teams=(lead.team,),
        )
    upload_give_up(upload)
    assert used(quota) == 0 and not Asset.objects.exists()
    upload_begin(uploaded_by=lead.user, name="p.safetensors", kind="lora", size_bytes=9000)  # everybody's, so nobody's


def test_m12_tus_refuses_the_announcement_of_a_model_that_does_not_fit():
    lead = a_caller(role=Role.LEAD)
    a_quota(1000, team=lead.team)
    values = {"filename": "m.safetensors", "kind": "lora"}
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())
    headers = {
        "Authorization": f"Bearer {lead.token.text}", "Tus-Resumable": "1.0.0", "Upload-Length": "1001",
        "Upload-Metadata": metadata,
    }  # fmt: skip
    answer = Client().post(reverse("uploads"), headers=headers)
    assert answer.status_code == 429
    assert {name: answer.json()[name] for name in ("quota", "limit", "used", "asked", "resets_at")} == {
        "quota": "stored_bytes", "limit": 1000, "used": 0, "asked": 1001, "resets_at": None,
    }  # fmt: skip
    assert not Upload.objects.exists() and not Asset.objects.exists()


def test_m12_the_admins_form_says_that_a_model_does_not_fit_and_keeps_nothing():
    team = a_caller().team
    a_quota(10, team=team)
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    form = {
        "file": ContentFile(b"x" * 11, name="m.safetensors"), "name": "m", "kind": "lora", "access": "teams",
        "teams": [team.pk],
    }  # fmt: skip
    page = client.post(reverse("admin:assets_asset_add"), form, follow=True)
    assert page.status_code == 200 and "stored_bytes" in page.content.decode() and not Asset.objects.exists()


def test_a_quarantined_model_has_no_file_and_counts_nothing():
    team = a_caller().team
    quota = a_quota(1000, team=team)
    asset = asset_receive(
        file=io.BytesIO(b"x" * 100), name="m.safetensors", kind="lora", access=Access.TEAMS, teams=(team,)
    )
    assert used(quota) == 100
    Asset.objects.filter(pk=asset.pk).update(state="quarantined")
    assert used(quota) == 0


@pytest.mark.parametrize("whose", ["team", "member", "token", "organisation"])
def test_a_quota_counts_the_bytes_of_those_it_names(whose):
    caller, colleague, stranger = a_caller(), a_caller(user="alan"), a_caller("team-b", "bob")
    quota = a_quota(GIB, **named_by(whose, caller))
    for number, one in enumerate((caller, colleague, stranger)):
        a_job(one)
        deliver(begun(f"w{number}"), key=f"{number}.png")
    file_upload(team=caller.team, folder="", name="a.txt", file=io.BytesIO(b"x" * 10), user=caller.user)
    assert used(quota) == {"team": 12, "member": 11, "token": 1, "organisation": 13}[whose]


def test_bytes_stay_with_the_team_when_who_brought_them_goes():
    caller = a_caller()
    quota = a_quota(GIB, team=caller.team)
    a_job(caller)
    deliver(begun())
    guest = a_caller(user="guest")
    file = file_upload(team=caller.team, folder="", name="a.txt", file=io.BytesIO(b"x" * 10), user=guest.user)
    ApiToken.objects.all().delete()
    guest.user.delete()
    assert used(quota) == 11 and in_step()
    file_remove(file_id=file.pk)
    assert used(quota) == 1 and in_step()


def test_s23_what_is_stored_is_counted_in_the_same_statements_however_much_it_is():
    caller = a_caller()
    a_quota(10**15, team=caller.team)
    a_job(caller)
    seen = []
    for many in (10, 1000):
        TeamFile.objects.bulk_create(
            TeamFile(
                team=caller.team, path=f"{many}-{n}", file_key=f"{many}/{n}", sha256="0" * 64, size_bytes=1,
                made_at=timezone.now(), created_at=timezone.now(),
            )
            for n in range(many)
        )  # fmt: skip
        with CaptureQueriesContext(
            connection,
        ) as captured:
            job_submit(caller=caller, request=a_request(), source=Source.API)
        touched = [query["sql"] for query in captured if "teamfile" in query["sql"] or "renderimage" in query["sql"]]
        seen.append((len(captured), len(touched)))
    assert seen[0] == seen[1] and seen[0][1] == 1  # its own images, written


def test_the_counter_is_checked_against_the_rows_and_put_right():
    caller = a_caller()
    quota = a_quota(GIB, team=caller.team)
    a_job(caller)
    deliver(begun())
    StoredBytes.objects.update(size_bytes=77)
    (line,) = m12_stored_bytes_are_those_of_the_files()
    assert f"team {caller.team.pk}" in line and "76 away" in line
    call_command("recount_stored_bytes", stdout=io.StringIO())
    assert in_step() and used(quota) == 1


@pytest.mark.django_db(transaction=True)
def test_s23_racing_submitters_and_uploaders_do_not_pass_what_may_be_stored():
    a_platform()
    caller = a_caller()
    each = image_bytes(a_request())
    quota = a_quota(10 * each, team=caller.team)
    said: list[bool] = []

    def submit() -> None:
        for _ in range(4):
            try:
                job_submit(caller=caller, request=a_request(n_iter=2), source=Source.API)
                said.append(True)
            except QuotaExceededError:
                said.append(False)

    def upload(name: str) -> None:
        for number in range(3):
            data = hashlib.sha256(f"{name}{number}".encode()).hexdigest().encode() * (each // 64)
            try:
                file_upload(
                    team=caller.team, folder="", name=f"{name}{number}.txt", file=io.BytesIO(data), user=caller.user
                )
            except QuotaExceededError:
                said.append(False)

    at_once(submit, submit, lambda: upload("a"), lambda: upload("b"))
    left = quota.limit - used(quota)
    assert 0 <= left < 2 * each and False in said
    assert Team.objects.count() == 1 and in_step()
