"""The file browser of the admin: who sees what, what is taken in and given out, and what it costs."""

from __future__ import annotations

import io
import re

import pytest
from auditlog.models import LogEntry
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import Role, Team, User
from accounts.services import member_ensure
from operations.invariants import violations
from renderjobs.models import TeamFile
from renderjobs.team_files import file_upload
from tests.admin.pages import client_of, page
from tests.factories import a_caller, a_job
from tests.renderjobs.test_delivery import begun, deliver
from tests.renderjobs.test_team_files import FOLDERS, INFOTEXT, a_picture, stored

pytestmark = pytest.mark.django_db
LIVE = {"X-Requested-With": "upload"}


@pytest.fixture
def people() -> dict[str, Client]:
    roles = {"lead": Role.LEAD, "member": Role.MEMBER, "viewer": Role.VIEWER, "money": Role.FINANCE}
    for name, role in roles.items():
        member_ensure(team_name="studio", user_name=name, role=role)
    member_ensure(team_name="hidden-team", user_name="zoltan", role=Role.LEAD)
    User.objects.update(is_staff=True)
    User.objects.create_superuser("root")
    return {user.username: client_of(user) for user in User.objects.all()}


@pytest.fixture
def team(people) -> Team:
    return Team.objects.get(name="studio")


@pytest.fixture
def hidden(people) -> Team:
    return Team.objects.get(name="hidden-team")


def browse(area: object, **query: str) -> str:
    return reverse("admin:renderjobs_files_folder", args=[area], query=query)


def send(client: Client, area: object, *files: SimpleUploadedFile, folder: str = "data", **headers: str):
    address = reverse("admin:renderjobs_files_upload", args=[area])
    return client.post(address, {"folder": folder, "files": list(files)}, headers=headers, follow=not headers)


def png(name: str = "ring.png", **options: object) -> SimpleUploadedFile:
    return SimpleUploadedFile(name, a_picture(**options), content_type="image/png")  # type: ignore[arg-type]


def remove(client: Client, area: object, *ids: int, **more: str):
    address = reverse("admin:renderjobs_files_delete", args=[area])
    return client.post(address, {"file": ids, "folder": "data", **more}, follow=True)


def kept(team: Team | None, name: str = "ring.txt", folder: str = "data") -> TeamFile:
    user = User.objects.get(username="root")
    return file_upload(team=team, folder=folder, name=name, file=io.BytesIO(b"x"), user=user)


def test_d7_an_uploaded_picture_is_browsed_shown_and_fetched_by_its_signed_address(people, team):
    assert "is here" in send(people["member"], team.pk, png(), png("b.png")).content.decode()
    body = people["viewer"].get(browse(team.pk, folder="data")).content.decode()
    assert INFOTEXT.splitlines()[0] in body and "uploaded" in body
    shown, to_save = re.findall(r'href="([^"]*/files/[^"]+)"', body)[1:3]
    answer = Client().get(shown)
    assert b"".join(answer.streaming_content) == a_picture()
    assert (answer["Content-Type"], answer["X-Content-Type-Options"]) == ("image/png", "nosniff")
    assert "attachment" not in answer.get("Content-Disposition", "")
    assert 'attachment; filename="' in Client().get(to_save)["Content-Disposition"]
    assert list(violations()) == []


def test_s13_a_text_is_saved_and_never_shown(people, team):
    send(people["lead"], team.pk, SimpleUploadedFile("page.txt", b"<script>alert(1)</script>"))
    body = people["lead"].get(browse(team.pk, folder="data")).content.decode()
    answer = Client().get(re.search(r'href="([^"]*/files/[^"]+)"', body)[1])  # type: ignore[index]
    assert answer["Content-Type"] == "application/octet-stream" and answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Disposition"] == 'attachment; filename="page.txt"'


def test_s13_names_and_infotexts_are_escaped(people, team):
    send(people["lead"], team.pk, png(infotext="<script>alert(1)</script>"))
    assert "<script>alert" not in people["lead"].get(browse(team.pk, folder="data")).content.decode()


def test_folders_are_walked_by_crumbs(people, team):
    send(people["member"], team.pk, png(), folder="data/inputs/2026")
    root = people["member"].get(browse(team.pk)).content.decode()
    assert f'href="{browse(team.pk)}?folder=data"' in root
    deep = people["member"].get(browse(team.pk, folder="data/inputs/2026")).content.decode()
    assert "ring.png" in deep and f'href="{browse(team.pk)}?folder=data%2Finputs"' in deep


def test_a_wrong_file_among_right_ones_is_named_and_the_others_are_here(people, team, tmp_path):
    body = send(people["member"], team.pk, png(), SimpleUploadedFile("a.html", b"<p>")).content.decode()
    assert "ring.png is here" in body and "of type &#x27;html&#x27; are not kept" in body
    assert stored(tmp_path) == [f"{team.pk}/files/data/ring.png"]


def test_the_script_is_told_why_a_file_is_refused(people, team):
    answer = send(people["member"], team.pk, SimpleUploadedFile("a.exe", b"MZ"), **LIVE)
    assert answer.status_code == 422 and "are not kept" in answer.json()["said"][0]
    assert send(people["member"], team.pk, png(), **LIVE).json() == {"said": ["ring.png is here."]}
    assert send(people["member"], team.pk, **LIVE).json() == {"said": ["No file was sent."]}


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_s16_no_folder_of_a_request_leads_out_of_the_area(people, team, hidden, tmp_path, folder):
    secret = kept(hidden)
    client = people["member"]
    if folder != "data ":  # what is typed into the form loses its spaces at the ends
        assert send(client, team.pk, png(), folder=folder, **LIVE).status_code == 422
    assert client.get(browse(team.pk, folder=folder)).status_code == 404
    assert stored(tmp_path) == [secret.file_key]


@pytest.mark.parametrize("area", ["0", "-1", "x", "99999999999999999999", "..", "%2e%2e", "1e1", "\u0661"])
def test_s2_there_are_no_other_areas(people, area):
    for client in people.values():
        assert client.get(reverse("admin:renderjobs_files") + f"{area}/").status_code in (302, 404)


@pytest.mark.parametrize("who", ["lead", "member", "viewer", "money"])
def test_s2_a_foreign_teams_area_is_as_if_it_were_not_there(people, team, hidden, tmp_path, who):
    file, client = kept(hidden), people[who]
    for area in (hidden.pk, 10**9):
        assert client.get(browse(area)).status_code == 404
        assert send(client, area, png(), **LIVE).status_code == 404
        assert remove(client, area, file.pk, sure="yes").status_code == 404
    remove(client, team.pk, file.pk, sure="yes")
    assert "hidden-team" not in client.get(reverse("admin:renderjobs_files")).content.decode()
    assert stored(tmp_path) == [file.file_key] and TeamFile.objects.filter(pk=file.pk).exists()


@pytest.mark.parametrize(("who", "may"), [("lead", True), ("member", True), ("viewer", False), ("money", False)])
def test_p11_viewers_read_only(people, team, tmp_path, who, may):
    file = kept(team)
    sent = send(people[who], team.pk, png(), **LIVE)
    assert sent.status_code == (201 if may else 404 if who == "money" else 403)
    remove(people[who], team.pk, file.pk, sure="yes")
    assert TeamFile.objects.filter(pk=file.pk).exists() is not may
    shown = people[who].get(browse(team.pk, folder="data"))
    assert shown.status_code == (404 if who == "money" else 200)
    assert (b'type="file"' in shown.content) is may


def test_d7_everybody_reads_the_public_area_and_admins_fill_it(people):
    assert send(people["root"], "public", png(), folder="", **LIVE).status_code == 201
    file = TeamFile.objects.get()
    for who in ("lead", "member", "viewer", "zoltan"):
        assert b"ring.png" in people[who].get(browse("public")).content
        assert people[who].get(page("renderjobs_teamfile", "change", file.pk)).status_code == 200
        assert send(people[who], "public", png("b.png"), folder="", **LIVE).status_code == 403
        assert remove(people[who], "public", file.pk, sure="yes").status_code == 403
        assert people[who].post(page("renderjobs_teamfile", "delete", file.pk), {"post": "yes"}).status_code == 403
    assert people["money"].get(browse("public")).status_code == 404
    remove(people["root"], "public", file.pk, sure="yes")
    assert not TeamFile.objects.exists()


def test_s17_a_file_is_deleted_by_its_row_after_a_question_and_twice_is_harmless(people, team, tmp_path):
    first, second = kept(team, "a.txt"), kept(team, "b.txt")
    asked = remove(people["member"], team.pk, first.pk).content.decode()
    assert "deleted for good" in asked and "a.txt" in asked and len(stored(tmp_path)) == 2
    assert "a.txt is deleted" in remove(people["member"], team.pk, first.pk, sure="yes").content.decode()
    assert remove(people["member"], team.pk, first.pk, sure="yes").status_code == 200
    assert stored(tmp_path) == [second.file_key] and list(violations()) == []
    assert "was deleted" in [(entry.additional_data or {}).get("did") for entry in LogEntry.objects.all()]


def test_an_imported_picture_is_deleted_by_djangos_own_page(people, team, tmp_path):
    file = kept(team)
    assert people["lead"].post(page("renderjobs_teamfile", "delete", file.pk), {"post": "yes"}).status_code == 302
    assert stored(tmp_path) == [] and not TeamFile.objects.exists()


def test_i2_a_delivered_picture_is_shown_with_its_job_and_cannot_be_chosen_for_deletion(people, team):
    job = a_job(a_caller("studio", "member"))
    key = f"{team.pk}/files/data/txt2img-images/ring.png"
    deliver(begun(), key=key)
    default_storage.save(key, ContentFile(a_picture()))
    default_storage.save(f"{team.pk}/files/data/txt2img-images/grid-1.png", ContentFile(a_picture()))
    body = people["lead"].get(browse(team.pk, folder="data/txt2img-images")).content.decode()
    assert reverse("admin:renderjobs_image", args=[job.pk, 0]) in body and "kept with it" in body
    assert "made by a job, kept with it" in body and 'type="checkbox" name="file"' not in body
    remove(people["lead"], team.pk, job.images.get().pk, sure="yes")
    assert default_storage.exists(key)


def test_what_is_on_its_way_is_shown_without_an_address(people, team):
    kept(team)
    TeamFile.objects.update(state="leaving")
    body = people["lead"].get(browse(team.pk, folder="data")).content.decode()
    assert "leaving" in body and "/files/" not in re.sub(r'href="/admin[^"]*"', "", body)


def test_c5_a_page_costs_the_same_questions_however_many_files_there_are(people, team):
    counts = []
    for more in (10, 300):
        for number in range(more):
            key = f"{team.pk}/files/data/{more}-{number:03d}.png"
            default_storage.save(key, ContentFile(b"x"))
            TeamFile.objects.create(
                team=team, path=key, file_key=key, sha256="0" * 64, size_bytes=1, made_at=timezone.now(),
                created_at=timezone.now(),
            )  # fmt: skip
        people["lead"].get(browse(team.pk, folder="data"))
        with CaptureQueriesContext(connection) as queries:
            body = people["lead"].get(browse(team.pk, folder="data")).content.decode()
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 9
    assert body.count('<input type="checkbox" name="file"') == 60 and "Next page" in body
    following = re.search(r'href="([^"]+)">Next page', body)[1].replace("&amp;", "&")  # type: ignore[index]
    assert "300-050.png" in people["lead"].get(following).content.decode()


def test_names_that_begin_so_are_found(people, team):
    for name in ("apple.txt", "pear.txt"):
        kept(team, name)
    body = people["lead"].get(browse(team.pk, folder="data", begins="pe")).content.decode()
    assert "pear.txt" in body and "apple.txt" not in body


def test_s6_an_upload_needs_the_forms_token(team):
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.get(username="root"))
    assert send(client, team.pk, png(), **LIVE).status_code == 403 and not TeamFile.objects.exists()
