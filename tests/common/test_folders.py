"""Pages of a folder: everything once, in order, whatever the page's size, on a disk as on an object store."""

from __future__ import annotations

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage

from common.folders import folder_page

NAMES = ["a.png", "a/1.png", "a/deep/2.png", "a0.png", "b/3.png", "b.txt", "c d.png", "z.png"]


@pytest.fixture
def storage(tmp_path):
    storage = FileSystemStorage(location=str(tmp_path / "stored"))
    for name in NAMES:
        storage.save(f"1/files/{name}", ContentFile(b"x" * len(name)))
    storage.save("2/files/foreign.png", ContentFile(b"x"))
    return storage


def names(storage, folder: str, limit: int, **more: str) -> list[str]:
    found, after = [], ""
    for _ in range(20):
        page = folder_page(storage, folder, limit=limit, after=after, **more)
        assert len(page.entries) <= limit
        found += [entry.place for entry in page.entries]
        after = page.after
        if not after:
            return found
    raise AssertionError("The pages never end.")


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_pages_have_everything_once_in_order(storage, limit):
    assert names(storage, "1/files", limit) == ["a.png", "a/", "a0.png", "b.txt", "b/", "c d.png", "z.png"]


def test_a_folder_inside_is_a_folder_of_its_own(storage):
    assert names(storage, "1/files/a", 10) == ["1.png", "deep/"]


def test_only_names_that_begin_so(storage):
    assert names(storage, "1/files", 1, begins="a") == ["a.png", "a/", "a0.png"]


@pytest.mark.parametrize("folder", ["3/files", "1/files/a.png", "1/files/nowhere"])
def test_what_is_no_folder_has_nothing_in_it(storage, folder):
    assert names(storage, folder, 10) == []


def test_sizes_and_times_come_along(storage):
    entry = folder_page(storage, "1/files", begins="z").entries[0]
    assert entry.size_bytes == 5 and entry.modified_at is not None and not entry.is_folder


def test_links_are_not_shown(storage, tmp_path):
    (tmp_path / "stored/1/files/link.png").symlink_to("/etc/passwd")
    (tmp_path / "stored/1/files/linked").symlink_to("/etc")
    assert "link.png" not in (found := names(storage, "1/files", 100)) and "linked/" not in found
