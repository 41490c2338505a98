"""Imports of data directories in the admin: begun by a form, watched on a page, refused where they are not allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import Role, Team, User
from accounts.services import member_ensure
from renderjobs.models import DirectoryImport, ImportedNot, TeamFile
from tests.admin.pages import client_of, page
from tests.renderjobs.test_data_directory import a_png, write

pytestmark = pytest.mark.django_db
NAME = "renderjobs_directoryimport"


@pytest.fixture
def root() -> Client:
    member_ensure(team_name="studio", user_name="ada", role=Role.LEAD)
    return client_of(User.objects.create_superuser("root"))


@pytest.fixture
def directory(tmp_path, settings) -> Path:
    settings.IMPORT_DIRS = [tmp_path / "allowed"]
    settings.CELERY_TASK_ALWAYS_EAGER = True
    write(tmp_path / "allowed/old/outputs/a.png", a_png("a picture of old"))
    write(tmp_path / "allowed/old/outputs/broken.png", b"<script>")
    return tmp_path / "allowed/old"


def begin(client: Client, directory: object, **changes: object):
    form = {"team": Team.objects.get(name="studio").pk, "directory": str(directory), "folder": "data", **changes}
    return client.post(page(NAME, "add"), form, follow=True)


def test_a_superuser_imports_a_directory_and_reads_what_became_of_it(
    root, directory, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        begin(root, directory)
    run = DirectoryImport.objects.get()
    body = root.get(page(NAME, "change", run.pk)).content.decode()
    assert "1 of 2 files taken in; 1 left" in body and "outputs/broken.png" in body and "Invalid encoded image" in body
    assert "data-live-until-ended" not in body
    folder = f"/admin/renderjobs/teamfile/browse/{run.team_id}/?folder=data"
    assert folder in body and "a picture of old" in root.get(f"{folder}/outputs").content.decode()


def test_an_import_under_way_keeps_its_page_up_to_date(root, directory):
    begin(root, directory)
    DirectoryImport.objects.update(
        state="running", began_at=timezone.now(), touched_at=timezone.now(), bytes_total=100, bytes_done=25
    )
    body = root.get(page(NAME, "change", DirectoryImport.objects.get().pk)).content.decode()
    assert "data-live-until-ended" in body and 'value="25"' in body and "more" in body and "common/live.js" in body
    assert "data-live-until-ended" in root.get(page(NAME, "changelist")).content.decode()


def test_d9_where_nothing_may_be_imported_the_form_says_how_to_allow_it(root, directory, settings):
    settings.IMPORT_DIRS = []
    assert "IMPORT_DIRS names those" in begin(root, directory).content.decode()
    assert not DirectoryImport.objects.exists()


@pytest.mark.parametrize(
    "wrong", [{"directory": "/etc"}, {"directory": "../old"}, {"folder": "../x"}, {"folder": "/etc"}, {"team": ""}]
)
def test_a_wrong_form_begins_nothing(root, directory, wrong):
    assert begin(root, **{"directory": directory, **wrong}).status_code == 200
    assert not DirectoryImport.objects.exists() and not TeamFile.objects.exists()


def test_an_import_is_stopped_and_goes_on(root, directory):
    begin(root, directory)
    run = DirectoryImport.objects.get()
    for action, state in (("stop", "stopped"), ("go_on", "ended")):
        root.post(page(NAME, "changelist"), {"action": action, "_selected_action": [run.pk]})
        run.refresh_from_db()
        assert run.state == state


def test_c5_a_page_costs_the_same_questions_however_much_was_left(root, directory):
    begin(root, directory)
    run, counts = DirectoryImport.objects.get(), []
    for more in (10, 900):
        ImportedNot.objects.bulk_create(
            ImportedNot(run=run, path=f"{more}-{n}", what="picture", why="broken") for n in range(more)
        )
        DirectoryImport.objects.update(files_left=ImportedNot.objects.count())
        root.get(page(NAME, "change", run.pk))
        with CaptureQueriesContext(connection) as queries:
            body = root.get(page(NAME, "change", run.pk)).content.decode()
        counts.append(len(queries))
    assert counts[0] == counts[1] and "And 710 more" in body
