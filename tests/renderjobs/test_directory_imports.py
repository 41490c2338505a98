"""Imports of data directories that the admin began: allowed or not, gone on with after a death, and what they say."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from assets.models import Asset
from common.errors import ConflictError, ForbiddenError, InvalidRequestError
from operations.invariants import violations
from renderjobs import directory_imports
from renderjobs.data_directory import TakenIn
from renderjobs.directory_imports import import_resume, import_run, import_start, import_stop, imports_waiting
from renderjobs.models import DirectoryImport, TeamFile
from tests.factories import a_caller
from tests.renderjobs.test_data_directory import a_png, write
from tests.weights import a_checkpoint_file

pytestmark = pytest.mark.django_db


@pytest.fixture
def directory(tmp_path, settings) -> Path:
    root = tmp_path / "allowed" / "old"
    settings.IMPORT_DIRS = [tmp_path / "allowed"]
    write(root / "models/Stable-diffusion/dream.safetensors", a_checkpoint_file())
    write(root / "models/GFPGAN/GFPGANv1.4.pth", b"weights")
    write(root / "outputs/a.png", a_png("a"))
    write(root / "outputs/b.png", a_png("b"))
    write(root / "outputs/broken.png", b"no picture")
    write(root / "outputs/notes.txt", b"hello")
    return root


@pytest.fixture
def team():
    return a_caller("studio").team


def begun(directory: Path, team, **changes: object) -> DirectoryImport:
    return import_start(**{"team": team, "directory": str(directory), "folder": "data", "public": False, "user": None,
                           **changes})  # fmt: skip


def ended(run: DirectoryImport) -> DirectoryImport:
    import_run(run.pk)
    return DirectoryImport.objects.get(pk=run.pk)


def test_d8_an_import_says_what_it_took_and_what_it_left_and_why(directory, team):
    run = ended(begun(directory, team))
    assert (run.state, run.files_total, run.files_done, run.files_left, run.files_passed_over) == ("ended", 5, 3, 2, 1)
    assert run.bytes_done == run.bytes_total > 0
    assert {one.path: one.why for one in run.left.all()} == {
        "models/GFPGAN/GFPGANv1.4.pth": "Models of this folder are not used here.",
        "outputs/broken.png": "Invalid encoded image",
    }
    assert Asset.objects.get().state == "approved" and TeamFile.objects.count() == 2
    assert list(violations()) == []


def test_it_may_be_done_again(directory, team):
    run = ended(begun(directory, team))
    write(directory / "outputs/c.png", a_png("c"))
    import_resume(run=run)
    again = ended(run)
    assert (again.files_done, again.files_known, again.files_left, again.left.count()) == (4, 3, 2, 2)
    assert Asset.objects.count() == 1 and TeamFile.objects.count() == 3


class KilledError(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


def killed_at(path: str, monkeypatch) -> list[str]:
    """The files that are dealt with, from now on; at ``path`` the worker dies, once."""
    real, seen = directory_imports.file_import, []

    def file_import(at: Path, **given: object) -> TakenIn:
        seen.append(at.name)
        if at.name == path and seen.count(path) == 1:
            raise KilledError
        return real(at, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(directory_imports, "file_import", file_import)
    return seen


def test_an_import_whose_worker_was_killed_goes_on_behind_the_last_file(directory, team, monkeypatch):
    run = begun(directory, team)
    seen = killed_at("b.png", monkeypatch)
    with pytest.raises(KilledError):
        import_run(run.pk)
    assert imports_waiting() == [] and ended(run).state == "running"  # the worker may be alive yet
    DirectoryImport.objects.update(touched_at=timezone.now() - timedelta(seconds=61))
    assert imports_waiting() == [run.pk]
    last = ended(run)
    assert seen == ["GFPGANv1.4.pth", "dream.safetensors", "a.png", "b.png", "b.png", "broken.png"]
    assert (last.state, last.files_done, last.files_left, last.left.count()) == ("ended", 3, 2, 2)


def test_where_the_last_file_is_gone_it_begins_anew_and_counts_once(directory, team, monkeypatch):
    run = begun(directory, team)
    killed_at("b.png", monkeypatch)
    with pytest.raises(KilledError):
        import_run(run.pk)
    (directory / "outputs/a.png").unlink()
    DirectoryImport.objects.update(touched_at=timezone.now() - timedelta(seconds=61))
    last = ended(run)
    assert (last.files_done, last.files_known, last.files_left, last.left.count()) == (2, 1, 2, 2)
    assert list(violations()) == []


def test_a_worker_that_comes_back_late_writes_nothing(directory, team, monkeypatch):
    run = begun(directory, team)
    real = directory_imports.file_import

    def overtaken(at: Path, **given: object) -> TakenIn:
        DirectoryImport.objects.update(fence=99)
        return real(at, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(directory_imports, "file_import", overtaken)
    assert ended(run).files_done == 0 and DirectoryImport.objects.get().state == "running"


def test_a_stopped_import_ends_at_the_next_file_and_may_go_on(directory, team, monkeypatch):
    run = begun(directory, team)
    real = directory_imports.file_import

    def stopping(at: Path, **given: object) -> TakenIn:
        import_stop(run=run)
        return real(at, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(directory_imports, "file_import", stopping)
    assert ended(run).state == "stopped" and DirectoryImport.objects.get().files_done == 0
    with pytest.raises(ConflictError):
        import_stop(run=run)
    monkeypatch.undo()
    import_resume(run=run)
    assert ended(run).files_done == 3
    assert list(violations()) == []


def test_one_import_works_at_a_time_the_oldest_first(directory, team):
    first, second = begun(directory, team), begun(directory, team, folder="again")
    assert imports_waiting() == [first.pk, second.pk]
    assert ended(second).state == "waiting"
    assert ended(first).state == "ended" and ended(second).state == "ended"


def test_d9_nothing_is_imported_unless_the_installation_says_from_where(directory, team, settings):
    settings.IMPORT_DIRS = []
    with pytest.raises(ForbiddenError, match="IMPORT_DIRS"):
        begun(directory, team)
    assert not DirectoryImport.objects.exists()


OUTSIDE = {
    "elsewhere": "/etc",
    "above": "{allowed}/..",
    "through": "{allowed}/../secret",
    "a neighbour with the same beginning": "{allowed}-too",
    "a link that leads out": "{allowed}/link",
    "relative": "old",
    "nothing": "",
    "a NUL": "{allowed}/old\x00",
    "home": "~/",
    "a drive": "C:\\old",
    "a file": "{allowed}/old/outputs/a.png",
    "missing": "{allowed}/nowhere",
}


@pytest.mark.parametrize("path", OUTSIDE.values(), ids=OUTSIDE)
def test_s16_only_folders_below_the_allowed_ones_are_read(directory, team, tmp_path, path):
    for name in ("secret", "allowed-too"):
        write(tmp_path / name / "a.png", a_png())
    (tmp_path / "allowed/link").symlink_to(tmp_path / "secret")
    with pytest.raises(InvalidRequestError):
        begun(path.format(allowed=tmp_path / "allowed"), team)  # type: ignore[arg-type]
    assert not DirectoryImport.objects.exists()


@pytest.mark.parametrize("folder", ["", "..", "/etc", "x" * 41, "a\\b"])
def test_s16_the_pictures_folder_lies_among_the_teams_files(directory, team, folder):
    with pytest.raises(InvalidRequestError):
        begun(directory, team, folder=folder)


def test_a_directory_that_becomes_a_link_to_elsewhere_is_not_read(directory, team, tmp_path):
    run = begun(directory, team)
    write(tmp_path / "secret/outputs/a.png", a_png("secret"))
    directory.rename(tmp_path / "moved")
    directory.symlink_to(tmp_path / "secret")
    last = ended(run)
    assert last.state == "failed" and "outside" in last.reason and not TeamFile.objects.exists()


def test_a_directory_that_is_gone_fails_with_its_reason_and_may_be_tried_again(directory, team, tmp_path):
    run = begun(directory, team)
    directory.rename(tmp_path / "moved")
    assert (ended(run).state, ended(run).reason) == ("failed", "There is no such folder.")
    (tmp_path / "moved").rename(directory)
    import_resume(run=run)
    assert ended(run).files_done == 3


def test_a_name_that_is_no_utf_8_is_taken_in(directory, team):
    write(Path(str(directory / "outputs") + "/caf\udce9.png"), a_png("latin"))
    assert ended(begun(directory, team)).files_done == 4
    assert TeamFile.objects.get(infotext="latin").file_key.isascii()


def test_a_large_file_tells_how_far_it_is(directory, team, monkeypatch):
    monkeypatch.setattr(directory_imports, "TELL_SECONDS", 0)
    told: list[int] = []
    real = directory_imports._tell

    def tell(run: DirectoryImport, **values: object) -> None:
        told.append(int(values.get("bytes_done", 0)))  # type: ignore[call-overload]
        real(run, **values)

    monkeypatch.setattr(directory_imports, "_tell", tell)
    last = ended(begun(directory, team))
    size = (directory / "models/Stable-diffusion/dream.safetensors").stat().st_size
    assert any(0 < done < size for done in told) and last.bytes_done == last.bytes_total


def test_every_picture_costs_a_bounded_number_of_statements(directory, team, django_assert_max_num_queries):
    for number in range(50):
        write(directory / f"outputs/many/{number:03d}.png", a_png(str(number)))
    begin = time.monotonic()
    with django_assert_max_num_queries(53 * 14 + 80):
        ended(begun(directory, team))
    print(f"{(time.monotonic() - begin) / 50 * 1000:.1f} ms per picture")
