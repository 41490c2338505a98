"""The worker's own disk: what stays, what goes, and what is never taken from under a render."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import storages

from gpuworker.contract import Recipe
from gpuworker.disk_cache import make_room, used
from gpuworker.model_files import files_kept
from tests.factories import a_checkpoint

KIB = 1024


def put(folder: Path, name: str, *, age: int, size: int = KIB) -> Path:
    """Args: age: Seconds since it was used."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_what_was_used_longest_ago_goes_first(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        put(tmp_path, name, age=age * 60)
    assert make_room(tmp_path, new_bytes=KIB, max_bytes=3 * KIB) == 2 * KIB
    assert names(tmp_path) == {"new", "middle"}


def test_use_makes_a_file_young(tmp_path):
    old = put(tmp_path, "old", age=600)
    put(tmp_path, "new", age=60)
    used(old, lambda: None).close()
    make_room(tmp_path, new_bytes=KIB, max_bytes=2 * KIB)
    assert names(tmp_path) == {"old"}


def test_file_in_use_stays_whatever_is_asked_for(tmp_path):
    put(tmp_path, "idle", age=0)
    with used(put(tmp_path, "rendering", age=600), lambda: None):
        assert make_room(tmp_path, new_bytes=5 * KIB, max_bytes=KIB) == KIB
        assert names(tmp_path) == {"rendering"}
    assert make_room(tmp_path, new_bytes=5 * KIB, max_bytes=KIB) == 0


def test_file_in_use_by_another_process_stays(tmp_path):
    path = put(tmp_path, "rendering", age=600)
    script = (
        "import sys; from pathlib import Path; from gpuworker.disk_cache import used\n"
        "file = used(Path(sys.argv[1]), None); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout and other.stdin and other.stdout.readline() == b"locked\n"
        make_room(tmp_path, new_bytes=KIB, max_bytes=KIB)
        assert path.exists()
        other.stdin.close()
    make_room(tmp_path, new_bytes=KIB, max_bytes=KIB)
    assert not path.exists()


def test_file_that_vanishes_before_it_is_locked_is_made_again(tmp_path):
    path = tmp_path / "weights"
    made = []

    def make() -> None:
        made.append(path)
        if len(made) > 1:
            path.write_bytes(b"whole")

    with used(path, make) as file:
        assert (file.read(), len(made)) == (b"whole", 2)


def test_configuration_goes_with_its_weights_and_inputs_count_too(tmp_path):
    put(tmp_path, "a.safetensors", age=600)
    put(tmp_path, "a.yaml", age=600, size=10)
    put(tmp_path / "inputs", "picture", age=60)
    put(tmp_path, ".copy-left-behind", age=3600)
    make_room(tmp_path, new_bytes=0, max_bytes=KIB)
    assert names(tmp_path) == {"picture"}


@pytest.mark.django_db
def test_new_checkpoint_takes_the_place_of_the_oldest(settings, tmp_path):
    settings.WORKER_CACHE_DIR, settings.WORKER_CACHE_BYTES = tmp_path / "cache", 5 * KIB
    recipes = [recipe_with(bytes([number]) * 2 * KIB) for number in range(3)]
    for recipe in recipes:
        with files_kept([recipe], set()) as (weights, _):
            assert weights[recipe.checkpoint.sha256].path.stat().st_size == 2 * KIB
    assert names(tmp_path / "cache") == {f"{recipe.checkpoint.sha256}.safetensors" for recipe in recipes[1:]}


def recipe_with(content: bytes) -> Recipe:
    sha256 = hashlib.sha256(content).hexdigest()
    asset = a_checkpoint(
        name=sha256[:8], sha256=sha256, short_hash=sha256[:10], file_key=f"checkpoint/{sha256}", size_bytes=len(content)
    )
    storages["assets"].save(asset.file_key, ContentFile(content))
    return Recipe(
        prompt="", negative_prompt="", seed=0, subseed=0, sampler="Euler", steps=1, cfg_scale=1.0, width=64, height=64,
        checkpoint=asset.weights,
    )  # fmt: skip
