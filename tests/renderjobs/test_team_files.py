"""Files that people put among a team's: what is kept, what is refused, and that nothing half done stays."""

from __future__ import annotations

import io
from datetime import timedelta
from pathlib import Path
from threading import Barrier, Thread

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connections
from django.utils import timezone
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from common.errors import ConflictError, InvalidRequestError, PlatformError
from operations.invariants import violations
from renderjobs import team_files
from renderjobs.models import RenderImage, TeamFile
from renderjobs.tasks import tidy
from renderjobs.team_files import file_remove, file_upload, folder_checked
from tests.factories import a_caller, a_job
from tests.renderjobs.test_delivery import begun, deliver

pytestmark = pytest.mark.django_db
INFOTEXT = "a ring\nSteps: 20, Sampler: Euler a, Seed: 1003, Size: 8x6"


def a_picture(kind: str = "PNG", *, infotext: str = INFOTEXT, size: tuple[int, int] = (8, 6)) -> bytes:
    file, text = io.BytesIO(), PngInfo()
    text.add_text("parameters", infotext)
    Image.new("RGB", size, "red").save(file, kind, **({"pnginfo": text} if kind == "PNG" else {}))
    return file.getvalue()


@pytest.fixture
def ada():
    return a_caller("studio").user


@pytest.fixture
def team(ada):
    return ada.memberships.get().team


def sent(team, ada, name: str = "ring.png", data: bytes | None = None, folder: str = "data/inputs") -> TeamFile:
    return file_upload(team=team, folder=folder, name=name, file=io.BytesIO(data or a_picture()), user=ada)


def stored(tmp_path: Path) -> list[str]:
    root = tmp_path / "pictures"
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_an_uploaded_picture_is_kept_with_its_infotext(ada, team, tmp_path):
    file = sent(team, ada)
    assert stored(tmp_path) == [file.file_key] == [f"{team.pk}/files/data/inputs/ring.png"]
    assert (file.infotext, file.width, file.height, file.origin, file.uploaded_by) == (INFOTEXT, 8, 6, "uploaded", ada)
    assert list(violations()) == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jpg", a_picture("JPEG")),
        ("a.JPEG", a_picture("JPEG")),
        ("a.webp", a_picture("WEBP")),
        ("a.txt", "a prompt, größer".encode()),
        ("a.jsonl", b'{"prompt": "a ring"}\n'),
        ("a.csv", b"prompt,seed\n"),
        ("a.yaml", b"a: 1\n"),
        ("a.md", b"# notes\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_these_types_are_kept(ada, team, name, data):
    with default_storage.open(sent(team, ada, name, data).file_key) as file:
        assert file.read() == data


REFUSED = {
    "a page": ("a.html", b"<script>alert(1)</script>", "of type 'html' are not kept"),
    "a drawing with scripts": ("a.svg", b"<svg onload='alert(1)'/>", "of type 'svg'"),
    "a program": ("a.exe", b"MZ", "of type 'exe'"),
    "an archive": ("a.zip", b"PK", "of type 'zip'"),
    "no type": ("README", b"hello", "'(none)'"),
    "a model": ("a.safetensors", b"x", "uploaded under Models"),
    "a pickle": ("a.CKPT", b"x", "uploaded under Models"),
    "a page called a picture": ("a.png", b"<html></html>", "no whole PNG"),
    "a JPEG called a PNG": ("a.png", a_picture("JPEG"), "no whole PNG"),
    "a GIF called a PNG": ("a.png", a_picture("GIF"), "no whole PNG"),
    "half a picture": ("a.png", a_picture()[:-30], "no whole PNG"),
    "a picture that is too wide": ("a.png", a_picture(size=(20_000, 1)), "16384 per side"),
    "a picture called a text": ("a.txt", a_picture("JPEG"), "no text in UTF-8"),
    "a text with a NUL": ("a.txt", b"a\x00b", "no text in UTF-8"),
    "nothing": ("a.txt", b"", "0 bytes"),
}


@pytest.mark.parametrize(("name", "data", "reason"), REFUSED.values(), ids=REFUSED)
def test_s9_s13_other_types_and_contents_are_refused_and_nothing_is_stored(ada, team, tmp_path, name, data, reason):
    with pytest.raises(InvalidRequestError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        file_upload(team=team, folder="", name=name, file=io.BytesIO(data), user=ada)
    assert stored(tmp_path) == [] and not TeamFile.objects.exists()


def test_a_file_beyond_the_limit_is_refused(ada, team, tmp_path, monkeypatch):
    monkeypatch.setattr(team_files, "MOST_TEXT_BYTES", 9)
    with pytest.raises(InvalidRequestError, match="accepted are 1 to 9"):
        sent(team, ada, "a.txt", b"0123456789")
    assert stored(tmp_path) == []


FOLDERS = {
    "two dots": "..",
    "two dots inside": "data/../../7/files",
    "two dots at the end": "data/..",
    "one dot": "./data",
    "absolute": "/etc",
    "a drive": "C:/windows",
    "a backslash": "data\\..\\x",
    "a NUL": "data\x00",
    "a line break": "data\nx",
    "a look-alike slash": "data\u2215x",
    "a full-width slash": "data\uff0fx",
    "look-alike dots": "\u2025",
    "look-alike letters": "d\u0430ta",
    "a hidden folder": ".git",
    "an empty part": "data//x",
    "a dot at the end": "data.",
    "a space at the end": "data ",
    "a coded part": "%2e%2e",
    "a wildcard": "*",
    "a long part": "x" * 101,
    "a long path": "/".join(["x" * 50] * 4),
}


@pytest.mark.parametrize("folder", FOLDERS.values(), ids=FOLDERS)
def test_s16_no_folder_leads_out_of_the_teams_files(ada, team, tmp_path, folder):
    with pytest.raises(InvalidRequestError, match="The folder"):
        sent(team, ada, folder=folder)
    assert stored(tmp_path) == [] and not TeamFile.objects.exists()


@pytest.mark.parametrize("folder", ["", "data", "data/txt2img-images/2026-11-28", "a b+c@d=e"])
def test_usual_folders_are_accepted(folder):
    assert folder_checked(folder) == folder


NAMES = {
    "two dots": "../../evil.png",
    "absolute": "/etc/evil.png",
    "a drive": "C:\\evil.png",
    "a NUL": "ev\x00il.png",
    "a look-alike slash": "a\u2215b.png",
    "a full-width slash": "a\uff0fb.png",
    "other letters": "夜景.png",
    "right to left": "evil\u202egnp.png",
    "hidden": ".png",
    "long": "x" * 300 + ".png",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_s16_a_files_name_becomes_a_plain_label_in_its_folder(ada, team, tmp_path, name):
    sent(team, ada, name)
    (key,) = stored(tmp_path)
    assert key.startswith(f"{team.pk}/files/data/inputs/") and key.endswith(".png")
    label = key.rpartition("/")[2]
    assert label.isascii() and label.isprintable() and not label.startswith(".") and len(label) < 101
    assert key.count("/") == 4 and list(violations()) == []


def test_the_same_file_twice_is_one_file(ada, team, tmp_path):
    assert sent(team, ada).pk == sent(team, ada).pk
    assert len(stored(tmp_path)) == 1


def test_another_file_of_the_same_name_is_refused(ada, team):
    sent(team, ada)
    with pytest.raises(ConflictError, match="another file of this name"):
        sent(team, ada, data=a_picture(infotext="another"))
    assert TeamFile.objects.get().infotext == INFOTEXT and list(violations()) == []


def test_d7_the_public_area_is_nobodys(ada, tmp_path):
    sent(None, ada, folder="")
    assert stored(tmp_path) == ["public/files/ring.png"] and list(violations()) == []


def test_m12_a_team_uploads_up_to_its_limit(ada, team, settings, tmp_path):
    settings.TEAM_FILES_BYTES = 100
    sent(team, ada, "a.txt", b"x" * 60)
    with pytest.raises(InvalidRequestError, match="has uploaded 60 of 100"):
        sent(team, ada, "b.txt", b"x" * 41)
    sent(team, ada, "c.txt", b"x" * 40)
    assert len(stored(tmp_path)) == 2


def test_i2_a_jobs_picture_is_neither_overwritten_nor_taken_over(ada, team, tmp_path):
    a_job(a_caller("studio"))
    key = f"{team.pk}/files/data/inputs/ring.png"
    deliver(begun(), key=key)
    default_storage.save(key, ContentFile(a_picture()))
    with pytest.raises(ConflictError, match="a job's file has this name"):
        sent(team, ada)
    assert not TeamFile.objects.exists() and RenderImage.objects.get(file_key=key)


def test_a_removed_file_is_gone_and_removing_it_again_is_harmless(ada, team, tmp_path):
    file = sent(team, ada)
    file_remove(file_id=file.pk)
    file_remove(file_id=file.pk)
    assert stored(tmp_path) == [] and not TeamFile.objects.exists()
    assert sent(team, ada).pk and list(violations()) == []


class KilledError(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("moment", ["before the object", "after the object"])
def test_an_upload_killed_in_the_middle_is_gone_on_with_by_the_same_file(ada, team, tmp_path, monkeypatch, moment):
    write = team_files._write

    def killed(key: str, data: bytes) -> None:
        if moment == "after the object":
            write(key, data)
        raise KilledError

    monkeypatch.setattr(team_files, "_write", killed)
    with pytest.raises(KilledError):
        sent(team, ada)
    monkeypatch.undo()
    assert TeamFile.objects.get().state == "arriving"
    with pytest.raises(ConflictError):
        sent(team, ada, data=a_picture(infotext="another"))
    assert sent(team, ada).state == "stored" and len(stored(tmp_path)) == 1 and list(violations()) == []


def test_what_a_killed_upload_left_is_tidied_after_an_hour(ada, team, tmp_path):
    file = sent(team, ada)
    TeamFile.objects.update(state="arriving")
    tidy()
    assert TeamFile.objects.filter(pk=file.pk).exists()
    TeamFile.objects.update(state_at=timezone.now() - timedelta(hours=2))
    tidy()
    assert stored(tmp_path) == [] and not TeamFile.objects.exists()


def test_a_deletion_killed_before_its_end_is_finished(ada, team, tmp_path):
    file = sent(team, ada)
    TeamFile.objects.update(state="leaving")
    default_storage.delete(file.file_key)
    assert list(violations()) == []
    with pytest.raises(ConflictError, match="being deleted"):
        sent(team, ada)
    tidy()
    assert not TeamFile.objects.exists() and sent(team, ada)


def test_a_file_removed_while_it_arrives_leaves_nothing(ada, team, tmp_path, monkeypatch):
    write = team_files._write

    def overtaken(key: str, data: bytes) -> None:
        write(key, data)
        file_remove(file_id=TeamFile.objects.get().pk)
        write(key, data)  # the slower of two writers ends after the deletion

    monkeypatch.setattr(team_files, "_write", overtaken)
    with pytest.raises(PlatformError, match="removed while it arrived"):
        sent(team, ada)
    assert stored(tmp_path) == [] and not TeamFile.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_two_files_of_one_name_that_come_at_once_one_is_kept(tmp_path):
    caller = a_caller("studio")
    together, outcomes = Barrier(2), []

    def send(infotext: str) -> None:
        together.wait()
        try:
            sent(caller.team, caller.user, data=a_picture(infotext=infotext))
            outcomes.append("kept")
        except ConflictError:
            outcomes.append("refused")
        finally:
            connections.close_all()

    threads = [Thread(target=send, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["kept", "refused"]
    assert len(stored(tmp_path)) == 1 and list(violations()) == []


def test_s2_files_are_visible_to_their_team_and_public_ones_to_everybody(ada, team):
    sent(team, ada)
    sent(None, ada, "public.txt", b"x")
    other = a_caller("team-b", "eve").user
    assert TeamFile.objects.visible_to(ada).count() == 2
    assert [file.path for file in TeamFile.objects.visible_to(other)] == ["public.txt"]
