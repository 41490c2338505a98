"""Pickled files of tensors become safetensors at their intake; a file of more than tensors is refused and leaves nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import sys
import tracemalloc
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from django.core.files.storage import storages
from safetensors.torch import load

from assets import conversion
from assets.conversion import convert
from assets.intake import asset_process, asset_receive
from assets.models import Asset
from assets.scanning import UnsafeFileError, header_read
from tests.weights import SD1_KEYS, a_checkpoint_file

VECTORS = torch.arange(6.0).reshape(2, 3)
HYPERNETWORK: dict[Any, Any] = {
    4: tuple({"linear.0.weight": torch.full((8, 4), side), "linear.0.bias": torch.zeros(8)} for side in (1.0, 2.0)),
    "name": "ink",
    "step": 100,
    "layer_structure": [1, 2, 1],
    "activation_func": "relu",
}
EMBEDDING = {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "ink", "step": 7}


def pickled(data: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(data, file, **options)
    return file.getvalue()


def take_in(data: bytes, kind: str, name: str = "ink.pt") -> Asset:
    return asset_process(asset_receive(file=io.BytesIO(data), name=name, kind=kind).pk)


def stored(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "assets").rglob("*") if path.is_file())


def content(asset: Asset) -> bytes:
    with storages["assets"].open(asset.file_key) as file:
        return file.read()


def converted(tmp_path: Path, data: bytes) -> bytes:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    convert(source, target)
    return target.read_bytes()


def metadata_of(data: bytes) -> dict[str, str]:
    return header_read(io.BytesIO(data), size_bytes=len(data)).metadata


@pytest.mark.django_db
def test_s20_a_hypernetwork_is_stored_as_safetensors_with_its_structure(tmp_path):
    data = pickled(HYPERNETWORK)
    asset = take_in(data, "hypernetwork")
    tensors, structure = load(content(asset)), json.loads(metadata_of(content(asset))["hypernetwork"])
    assert (asset.state, asset.family, stored(tmp_path)) == (
        "approved",
        "hypernetwork",
        [f"{asset.sha256}.safetensors"],
    )
    assert torch.equal(tensors["4.1.linear.0.weight"], torch.full((8, 4), 2.0))
    assert structure == {"name": "ink", "step": 100, "layer_structure": [1, 2, 1], "activation_func": "relu"}


@pytest.mark.django_db
def test_workers_verify_the_stored_file_and_people_see_the_hash_of_the_uploaded_one():
    data = pickled(EMBEDDING)
    asset, uploaded = take_in(data, "embedding"), hashlib.sha256(data).hexdigest()
    assert asset.sha256 == hashlib.sha256(content(asset)).hexdigest() and asset.size_bytes == len(content(asset))
    assert (asset.original_sha256, asset.short_hash, asset.listed_hash) == (uploaded, uploaded[:10], uploaded[:12])
    assert torch.equal(load(content(asset))["emb_params"], VECTORS)


@pytest.mark.django_db
def test_the_same_pickle_twice_is_one_asset(tmp_path):
    data = pickled(HYPERNETWORK)
    assert take_in(data, "hypernetwork") == take_in(data, "hypernetwork") and len(stored(tmp_path)) == 1


@pytest.mark.django_db
def test_a_storage_without_paths_converts_too(settings):
    settings.STORAGES = {**settings.STORAGES, "assets": {"BACKEND": "tests.assets.object_store.ObjectStore"}}
    asset = take_in(pickled({"<ink>": VECTORS[0]}), "embedding", "ink.bin")
    assert asset.state == "approved" and torch.equal(load(content(asset))["emb_params"], VECTORS[:1])
    assert list(storages["assets"].objects) == [asset.file_key]


@pytest.mark.django_db
def test_a_process_killed_while_converting_is_finished_by_the_next(tmp_path, monkeypatch):
    class Killed(BaseException):
        """Stands for a signal: nothing in the product catches it."""

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    asset = asset_receive(file=io.BytesIO(pickled(EMBEDDING)), name="ink.pt", kind="embedding")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("assets.intake.listed_hash", killed)
        asset_process(asset.pk)
    assert asset_process(asset.pk).state == "approved" and len(stored(tmp_path)) == 1


@pytest.mark.django_db
def test_s20_a_refused_pickle_leaves_no_file(tmp_path):
    asset = take_in(pickled({"weights": VECTORS, "code": Runs(tmp_path / "ran")}), "hypernetwork")
    assert asset.state == "quarantined" and "needs code to be unpickled, posix.system" in asset.reason
    assert stored(tmp_path) == [] and not (tmp_path / "ran").exists()


class Runs:
    """Unpickled by the letter it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_trained_checkpoint_is_converted_without_what_its_training_left_in_it(tmp_path, monkeypatch):
    class ModelCheckpoint:
        pass

    ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"
    ModelCheckpoint.__qualname__ = "ModelCheckpoint"
    module = types.ModuleType(ModelCheckpoint.__module__)
    module.ModelCheckpoint = ModelCheckpoint
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    state = {name: torch.zeros(shape) for name, shape in SD1_KEYS.items()}
    data = pickled({"state_dict": state, "callbacks": {ModelCheckpoint: {"best": ModelCheckpoint()}}, "epoch": 3})
    assert load(converted(tmp_path, data)).keys() == SD1_KEYS.keys()


def test_files_of_an_old_pytorch_are_converted(tmp_path):
    data = pickled({"params_ema": {"conv_first.weight": VECTORS, "b": VECTORS}}, _use_new_zipfile_serialization=False)
    assert load(converted(tmp_path, data)).keys() == {"conv_first.weight", "b"}


REFUSED = {
    "a list": ([VECTORS], "holds no tensors by name"),
    "no tensor": ({"a": 1}, "holds no tensors"),
    "repeated values without end": ({"a": VECTORS[:1].expand(10**9, 3), "b": VECTORS}, "larger than the file"),
    "a sparse tensor": ({"a": VECTORS.to_sparse(), "b": VECTORS}, "not plain arrays"),
    "half a hypernetwork": ({4: ({"a": VECTORS},)}, "not pairs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_tensors_is_refused_with_its_reason(name, tmp_path):
    data, reason = REFUSED[name]
    with pytest.raises(UnsafeFileError, match=reason):
        converted(tmp_path, pickled(data))
    assert os.listdir(tmp_path) == ["source"]


@pytest.fixture
def script(tmp_path, monkeypatch) -> Path:
    """Runs in place of the unpickling."""
    path = tmp_path / "script.py"
    monkeypatch.setattr(conversion, "SCRIPT", path)
    return path


def said(tmp_path: Path) -> str:
    with pytest.raises(UnsafeFileError) as refused:
        converted(tmp_path, pickled(EMBEDDING))
    return refused.value.message.split("cannot be converted: ")[1]


def test_s20_the_process_that_unpickles_has_no_environment_and_no_open_files(tmp_path, script, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgres://secret")
    script.write_text(
        "import json, os, sys\n"
        "open_files = [n for n in range(3, 100) if os.path.exists(f'/proc/self/fd/{n}')]\n"
        "print(json.dumps([sorted(os.environ), open_files, sys.flags.isolated]))\n"
        "sys.exit(3)"
    )
    with script.open() as file:
        os.set_inheritable(file.fileno(), True)
        environment, open_files, isolated = json.loads(said(tmp_path))
    assert {"DATABASE_URL", "HOME", "PATH"}.isdisjoint(environment) and (open_files, isolated) == ([], 1)


def test_a_file_that_takes_too_long_is_given_up(tmp_path, script, monkeypatch):
    monkeypatch.setattr(conversion, "BASE_SECONDS", 1)
    script.write_text("import time; time.sleep(60)")
    assert said(tmp_path) == "it takes longer than 1 seconds."


def test_a_file_that_takes_too_much_memory_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "BASE_MEMORY_BYTES", 64 * 1024**2)
    assert "takes more" in said(tmp_path)


def test_a_crash_of_the_process_is_a_refusal(tmp_path, script):
    script.write_text("import os; os.abort()")
    assert said(tmp_path).startswith("reading it failed")


def test_a_file_that_pytorch_never_wrote_starts_no_process(tmp_path, script):
    for data, reason in (
        (b"\x80\x04}.", "not one that PyTorch writes"),
        (b"PK\x03\x04" + b"\0" * 60, "neither one that"),
    ):
        with pytest.raises(UnsafeFileError, match=reason):
            converted(tmp_path, data)


def test_s11_a_small_archive_of_much_memory_starts_no_process(tmp_path, script):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(40 * 1024**2))
    with pytest.raises(UnsafeFileError, match="unpacks to 41943044 bytes, more than weights can"):
        converted(tmp_path, packed.getvalue())


def test_s11_a_directory_of_a_whole_memory_is_not_read(tmp_path, script):
    """Its end says how long it is, and ``zipfile`` reads it at once."""
    length = conversion.MAX_DIRECTORY_BYTES + 1
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, length, 30, 0)
    tracemalloc.start()
    with pytest.raises(UnsafeFileError, match="neither one that PyTorch writes"):
        (tmp_path / "source").write_bytes(b"PK\x03\x04" + bytes(26 + length) + end)
        tracemalloc.reset_peak()
        convert(tmp_path / "source", tmp_path / "target")
    assert tracemalloc.get_traced_memory()[1] < length
    tracemalloc.stop()


def test_a_safetensors_file_is_never_taken_for_a_pickle():
    assert not conversion.needs_conversion(io.BytesIO(a_checkpoint_file()))
