"""A folder of a model becomes one safetensors file, so that everything after the intake knows files only.

Of diffusers' layout each part's tensors get the part's name in front (``unet.``, ``vae.`` …); that of transformers has one part,
whose tensors keep their names. The texts beside them (``unet/config.json``, ``tokenizer.json`` …) lie in the file's metadata under
their places in the folder. The same folder gives the same bytes. No tensor is looked at, and no code that came along is taken over.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from assets.hashing import CHUNK_BYTES
from assets.scanning import Header, UnsafeFileError, header_read, unique_keys
from gpuworker.contract.layouts import FOLDER_PARTS
from gpuworker.contract.texts import CONFIG, INSTRUCTION, TOKENIZER

INDEX = "model_index.json"
CONFIGS = ("scheduler/scheduler_config.json", *(f"{part}/config.json" for part in FOLDER_PARTS))
TRANSFORMERS_TEXTS = (CONFIG, TOKENIZER, INSTRUCTION)
PICKLED = "pytorch_model.bin"
"""The weights of many folders of transformers; taken in by way of ``conversion``."""
MAX_TEXT_BYTES = 16 * 1024**2
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:-\d+-of-(?P<shards>\d+))?\.safetensors")
HALF = ".fp16"
"""In the names of a part's weights in half precision."""
ARCHIVE_GROWTH = 2
"""Weights hardly shrink: an archive that grows by more than this is made to fill a disk."""


class Folder(Protocol):
    """Files by their places in a folder, with slashes."""

    def sizes(self) -> dict[str, int]: ...

    def opened(self, name: str) -> IO[bytes]: ...


@dataclass(frozen=True, slots=True)
class Directory:
    path: Path
    beside: Mapping[str, Path] = field(default_factory=dict)
    """Files that lie elsewhere and are taken as if they lay in the folder."""

    def sizes(self) -> dict[str, int]:
        files = {path.relative_to(self.path).as_posix(): path for path in self.path.glob("**/*") if path.is_file()}
        return {name: path.stat().st_size for name, path in {**files, **self.beside}.items()}

    def opened(self, name: str) -> IO[bytes]:
        return self.beside.get(name, self.path / name).open("rb")


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip file of the folder's content, or of the folder itself."""

    file: zipfile.ZipFile

    @property
    def _above(self) -> str:
        found = (_above(top, self.file.namelist()) for top in TOPS)
        return next((above for above in found if above is not None), "")

    def sizes(self) -> dict[str, int]:
        above = self._above
        listed = [(entry.filename, entry.file_size) for entry in self.file.infolist()]
        return {name.removeprefix(above): size for name, size in listed if name.startswith(above)}

    def opened(self, name: str) -> IO[bytes]:
        return self.file.open(self._above + name)


TOPS = (INDEX, CONFIG)
"""The file at the top of a folder, by which its layout is told."""


def is_folder_archive(names: list[str]) -> bool:
    """Args: names: Of a zip file's entries."""
    return any(_above(top, names) is not None for top in TOPS)


def _above(top: str, names: list[str]) -> str | None:
    """What every name of the folder begins with; None where there is no such file at the top."""
    found = [name for name in names if name.rpartition("/")[2] == top and name.count("/") <= 1]
    return found[0].removesuffix(top) if len(found) == 1 else None


def archive_merge(source: Path, target: Path) -> None:
    """As ``folder_merge``, for a zip file."""
    try:
        with zipfile.ZipFile(source) as file:
            archive_refuse_growth(file, size_bytes=source.stat().st_size)
            folder_merge(Archive(file), target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UnsafeFileError(
            "The zip archive is damaged, encrypted or packed in a way nobody packs weights."
        ) from error


def archive_refuse_growth(file: zipfile.ZipFile, *, size_bytes: int) -> None:
    """Raises: UnsafeFileError: What is packed in it is made to fill a disk or a memory."""
    unpacked = sum(entry.file_size for entry in file.infolist())
    if unpacked > ARCHIVE_GROWTH * size_bytes + MAX_TEXT_BYTES:
        raise UnsafeFileError(f"The zip archive unpacks to {unpacked} bytes, more than weights can.")


def folder_merge(folder: Folder, target: Path) -> None:
    """Write the whole folder to ``target``.

    Raises:
        UnsafeFileError: It is no folder of a model, or a part of it has no weights that can be read.
    """
    sizes = folder.sizes()
    parts, texts = _layout(sizes)
    files = [_Weights(folder, part, name, sizes[name]) for part in parts for name in _weight_files(part, sizes)]
    header: dict[str, Any] = {"__metadata__": _texts(folder, sizes, texts)}
    position = 0
    for weights in files:
        for name, entry in weights.entries():
            if name in header:
                raise UnsafeFileError(f"Tensor {name[:100]!r} comes twice in the folder.")
            begin, end = (position + offset for offset in entry["data_offsets"])
            header[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [begin, end]}
        position += weights.data_bytes
    _write(target, header, files)


def _layout(sizes: dict[str, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the parts with weights, and places of the texts beside them.

    Raises:
        UnsafeFileError: It is neither that of diffusers nor that of transformers.
    """
    if INDEX in sizes:
        return FOLDER_PARTS, (INDEX, *CONFIGS)
    if CONFIG in sizes:
        return ("",), TRANSFORMERS_TEXTS
    raise UnsafeFileError(
        f"The folder has no {INDEX} or {CONFIG}, one of which every folder of diffusers or transformers has."
    )


def _write(target: Path, header: dict[str, Any], files: list[_Weights]) -> None:
    described = json.dumps(header, separators=(",", ":")).encode()
    # The library pads its headers so that tensors lie at multiples of eight.
    described += b" " * (-len(described) % 8)
    with target.open("wb") as written:
        written.write(len(described).to_bytes(8, "little") + described)
        for weights in files:
            weights.copy_data(written)


def _weight_files(part: str, sizes: dict[str, int]) -> list[str]:
    """One file or its shards, of the most precise variant there is: plain, else fp16; none where the folder lacks the part.

    Raises:
        UnsafeFileError: There are weights, but none that can be read.
    """
    place = f"{part}/" if part else ""
    found = sorted(name.removeprefix(place) for name in sizes if name.startswith(place))
    for variant in ("", HALF):
        matches = {
            name: WEIGHTS.fullmatch(name.replace(variant, "")) for name in found if (HALF in name) == bool(variant)
        }
        whole = [place + name for name, match in matches.items() if match and not match["shards"]]
        shards = {place + name: int(match["shards"]) for name, match in matches.items() if match and match["shards"]}
        if whole:
            return whole[:1]
        if shards:
            if len(shards) != max(shards.values()):
                raise UnsafeFileError(
                    f"{part or 'The folder'} lacks {max(shards.values()) - len(shards)} of its shards."
                )
            return sorted(shards)
    weights = [name for name in found if name.endswith((".bin", ".safetensors", ".msgpack"))]
    if weights:
        raise UnsafeFileError(f"{part or 'The folder'} has no weights as safetensors, only {', '.join(weights[:5])}.")
    return []


def _texts(folder: Folder, sizes: dict[str, int], wanted: Sequence[str]) -> dict[str, str]:
    """What the engine wants to know beside the weights, by its place in the folder; vocabularies of CLIP it has itself."""
    texts = {name: _text(folder, name, sizes) for name in wanted if name in sizes}
    for name in texts:
        if name.endswith(".json"):
            _mapping(name, texts[name])
    return texts


def _text(folder: Folder, name: str, sizes: dict[str, int]) -> str:
    if sizes[name] > MAX_TEXT_BYTES:
        raise UnsafeFileError(f"{name} is longer than {MAX_TEXT_BYTES} bytes.")
    with folder.opened(name) as file:
        try:
            return file.read(MAX_TEXT_BYTES).decode()
        except UnicodeDecodeError as error:
            raise UnsafeFileError(f"{name} is no text.") from error


def _mapping(name: str, text: str) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnsafeFileError(f"{name} is not valid JSON.") from error
    if not isinstance(read, dict):
        raise UnsafeFileError(f"{name} is not a JSON map.")
    return read


@dataclass(frozen=True, slots=True)
class _Weights:
    """One file of a part's weights, verified while it is read."""

    folder: Folder
    part: str
    name: str
    size_bytes: int

    def entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Its tensors as its header describes them, the part's name in front of theirs.

        Raises:
            UnsafeFileError: It is not a safetensors file.
        """
        self._verified()
        with self.folder.opened(self.name) as file:
            header = json.loads(file.read(self._header_bytes(file)), object_pairs_hook=unique_keys)
        for name in sorted(header.keys() - {"__metadata__"}):
            yield f"{self.part}.{name}" if self.part else name, header[name]

    @property
    def data_bytes(self) -> int:
        with self.folder.opened(self.name) as file:
            return self.size_bytes - 8 - self._header_bytes(file)

    def copy_data(self, target: IO[bytes]) -> None:
        with self.folder.opened(self.name) as file:
            file.read(self._header_bytes(file))
            shutil.copyfileobj(file, target, CHUNK_BYTES)

    def _verified(self) -> Header:
        try:
            with self.folder.opened(self.name) as file:
                return header_read(file, size_bytes=self.size_bytes)
        except UnsafeFileError as error:
            raise UnsafeFileError(f"{self.name}: {error.message}") from error

    @staticmethod
    def _header_bytes(file: IO[bytes]) -> int:
        return int.from_bytes(file.read(8), "little")
