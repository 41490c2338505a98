"""A service's document, as PAI-EAS's console shows and takes it ↔ settings of a service. Pure.

::

    text ──document_parsed──→ document ──settings_of──→ settings
                                 ↑────document_with────────┘

``document_with`` changes only what says something else than the settings, so that everything else stays as it was written. What the
original's document has no place for stands below the key ``renderkiln``, which counts before the rest: reading what was written
gives the same settings, whatever they are.
"""

from __future__ import annotations

import copy
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from common.errors import FieldError, InvalidRequestError
from renderjobs.compat.eas import flags
from renderjobs.compat.eas.paths import HOME, mounts_checked
from renderjobs.models.eas import EasEdition, EasService, PublicFolder

MAX_DOCUMENT = 65_536
MAX_SCRIPT = 20_000
OURS = "renderkiln"
SCRIPT, IMAGE = "containers[0].script", "containers[0].image"
EDITION_TAG = re.compile(r":[\w.-]*-(?P<name>standard|api|cluster-webui|serverless)\Z")
EDITIONS_OF_TAGS = {
    "standard": EasEdition.STANDARD,
    "api": EasEdition.API,
    "cluster-webui": EasEdition.CLUSTER,
    "serverless": EasEdition.SERVERLESS,
}
EDITIONS_OF_TYPES = {"Async": EasEdition.API, "SDCluster": EasEdition.CLUSTER}
SOURCES = ("oss", "nfs", "cpfs", "dataset", "model")
"""Of a storage entry: what is mounted by it. Others, such as a folder in memory, are no place for pictures."""
SKELETON = {
    "metadata": {"name": "", "instance": 1},
    "containers": [
        {
            "image": "pai-eas/stable-diffusion-webui:4.2",
            "script": "./webui.sh --listen --port 8000 --skip-version-check --no-hashing --no-download-sd-model "
            "--skip-prepare-environment --api",
            "port": 8000,
        }
    ],
}
"""Of a service that was made without a document."""
Document = dict[str, Any]


class KeyProblem(Exception):
    """One key of a document cannot be used."""

    def __init__(self, key: str, message: str):
        super().__init__(message)
        self.key = key


# --- text -------------------------------------------------------------------------------------------------------------


def document_parsed(text: str) -> Document:
    """Raises: InvalidRequestError: It is no JSON object, is too large, or names a key twice."""
    if len(text) > MAX_DOCUMENT:
        _refuse("document", f"The document has {len(text)} characters; at most {MAX_DOCUMENT} are accepted.")
    try:
        found = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
    except KeyProblem as problem:
        _refuse(problem.key, str(problem))
    except (ValueError, RecursionError) as error:
        _refuse("document", f"The document is no JSON: {str(error) or type(error).__name__}.")
    if not isinstance(found, dict):
        _refuse("document", "The document must be a JSON object.")
    return found


def _refuse(key: str, message: str) -> NoReturn:
    raise InvalidRequestError([FieldError(key, message)])


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:  # one of the two would be lost
            raise KeyProblem(key[:80], f"Key {key[:80]!r} stands twice in one object.")
        found[key] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def document_text(document: Document) -> str:
    return json.dumps(document, indent=2) + "\n"


# --- reading ----------------------------------------------------------------------------------------------------------


def settings_of(document: Document, *, known_mounts: Mapping[str, str]) -> dict[str, Any]:
    """Every setting of ``SETTINGS``, with the default where the document says nothing.

    Args:
        known_mounts: Mount path → folder, of the installation; another path's folder is called as its last part.
    Raises:
        InvalidRequestError: Keys that cannot be used, each by its name.
    """
    reader = _Reader(document, known_mounts)
    problems: list[KeyProblem] = []
    found: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        try:
            found[name] = setting.read(reader)
        except KeyProblem as problem:
            problems.append(problem)
    try:
        found |= reader.ours()
    except KeyProblem as problem:
        problems.append(problem)
    if problems:
        by_key = {problem.key: problem for problem in problems}
        raise InvalidRequestError([FieldError(key, f"{key}: {problem}") for key, problem in by_key.items()])
    return found


def script_unknown(document: Document) -> list[str]:
    """Flags of the run command that mean nothing here."""
    return flags.unknown(_Reader(document, {}).flags)


def default_of(name: str) -> Any:
    return EasService._meta.get_field(name).get_default()


class _Reader:
    """A document's keys, checked when they are asked for."""

    def __init__(self, document: Document, known_mounts: Mapping[str, str]):
        self.document, self.known_mounts = document, known_mounts

    def object(self, name: str) -> dict[str, Any]:
        found = self.document.get(name, {})
        if not isinstance(found, dict):
            raise KeyProblem(name, "must be an object.")
        return found

    @property
    def container(self) -> dict[str, Any]:
        """The one that runs the web API: the first."""
        containers = self.document.get("containers")
        if not isinstance(containers, list) or not containers or not isinstance(containers[0], dict):
            raise KeyProblem("containers", "must be a list that begins with the web UI's image and script.")
        return containers[0]

    @property
    def script(self) -> str:
        script = self.container.get("script")
        if not isinstance(script, str) or not script.strip() or len(script) > MAX_SCRIPT:
            raise KeyProblem(SCRIPT, f"must be a command of at most {MAX_SCRIPT} characters.")
        return script

    @property
    def flags(self) -> list[flags.Flag]:
        try:
            return flags.flags_of(self.script)
        except flags.ScriptError as error:
            raise KeyProblem(SCRIPT, f"{error}.") from error

    def metadata(self, name: str) -> tuple[str, Any]:
        """Key and value of an entry that is written ``"rpc.name"`` or ``{"rpc": {"name": …}}``; None where there is none."""
        metadata = self.object("metadata")
        group, _, rest = name.partition(".")
        flat, inner = metadata.get(name), metadata.get(group) if rest else None
        if inner is not None and not isinstance(inner, dict):
            raise KeyProblem(f"metadata.{group}", "must be an object.")
        nested = (inner or {}).get(rest)
        if flat is not None and nested is not None and flat != nested:
            raise KeyProblem(f'metadata["{name}"]', f"says {flat!r}, and metadata.{name} says {nested!r}.")
        key = f'metadata["{name}"]' if rest and flat is not None else f"metadata.{name}"
        return key, flat if flat is not None else nested

    def whole(self, name: str, default: Any, *, first: int = 1) -> int:
        key, value = self.metadata(name)
        return default if value is None else _whole(key, value, first)

    def ours(self) -> dict[str, Any]:
        """What stands below our own key."""
        own = self.object(OURS)
        for name, value in own.items():
            kind = OWN_KINDS.get(name)
            if kind is None:
                raise KeyProblem(f"{OURS}.{name}", f"is unknown; accepted are {', '.join(OWN_KINDS)}.")
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise KeyProblem(f"{OURS}.{name}", f"is {value!r}, which is of another kind.")
        return dict(own)


def _whole(key: str, value: Any, first: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < first:
        raise KeyProblem(key, f"is {_shown(value)}; a whole number from {first} is accepted.")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _name(reader: _Reader) -> str:
    name = reader.object("metadata").get("name")
    if not isinstance(name, str) or not name:
        raise KeyProblem("metadata.name", "must be the service's name.")
    return name


def _edition(reader: _Reader) -> str:
    """The type says it, else the image's tag; a document that says nothing is of the Standard edition."""
    if (own := reader.object(OURS).get("edition")) in EasEdition.values:
        return str(own)
    kind = reader.object("metadata").get("type")
    if kind is not None:
        if not isinstance(kind, str) or kind not in EDITIONS_OF_TYPES:
            accepted = " and ".join(map(repr, EDITIONS_OF_TYPES))
            raise KeyProblem("metadata.type", f"is {_shown(kind)}; {accepted} are services that can be offered here.")
        return EDITIONS_OF_TYPES[kind].value
    web = reader.object("metadata").get("enable_webservice", False)
    if not isinstance(web, bool):
        raise KeyProblem("metadata.enable_webservice", f"is {_shown(web)}; true and false are accepted.")
    image = reader.container.get("image", "")
    if not isinstance(image, str):
        raise KeyProblem(IMAGE, "must be an image's name.")
    tag = EDITION_TAG.search(image)
    return EDITIONS_OF_TAGS[tag["name"]].value if tag else EasEdition.STANDARD.value


def _replicas(reader: _Reader) -> int:
    instances = reader.whole("instance", 1)
    if instances != 1 and _edition(reader) == EasEdition.STANDARD:
        raise KeyProblem("metadata.instance", f"is {instances}; a service of the Standard edition has one instance.")
    return instances


def _window(reader: _Reader) -> int:
    """Requests at a time are said per instance."""
    threads = reader.whole("rpc.worker_threads", None)
    return default_of("window") if threads is None else threads * reader.whole("instance", 1)


def _max_delivery(reader: _Reader) -> int:
    value = reader.object("queue").get("max_delivery")
    return default_of("max_delivery") if value is None else _whole("queue.max_delivery", value, 1)


def _keepalive(reader: _Reader) -> int:
    """Written in milliseconds."""
    value = reader.whole("rpc.keepalive", None)
    return default_of("keepalive_seconds") if value is None else -(-value // 1000)


def _entries(reader: _Reader) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Number, entry and mount path of the storage that pictures may be kept in."""
    storage = reader.document.get("storage")
    if storage is None:
        return
    if not isinstance(storage, list):
        raise KeyProblem("storage", "must be a list.")
    for number, entry in enumerate(storage):
        key = f"storage[{number}]"
        if not isinstance(entry, dict):
            raise KeyProblem(key, "must be an object.")
        for source in SOURCES:
            if not isinstance(entry.get(source, {}), dict):
                raise KeyProblem(f"{key}.{source}", "must be an object.")
        properties = entry.get("properties", {})
        if not isinstance(properties, dict):
            raise KeyProblem(f"{key}.properties", "must be an object.")
        if not any(source in entry for source in SOURCES) and properties.get("resource_type") != "model":
            continue
        path = entry.get("mount_path")
        if not isinstance(path, str):
            raise KeyProblem(f"{key}.mount_path", "must be an absolute path.")
        yield number, entry, path


def _mounts(reader: _Reader) -> dict[str, str]:
    """Several entries of one path are one mount."""
    found: dict[str, str] = {}
    for number, _, path in _entries(reader):
        try:
            (plain,) = mounts_checked({path: "data"})
        except InvalidRequestError as error:
            raise KeyProblem(f"storage[{number}].mount_path", error.message) from error
        if plain not in found:
            found[plain] = reader.known_mounts.get(plain) or _free_folder(plain, found)
    data_dir = flags.last(reader.flags, flags.DATA_DIR)
    if found and data_dir and not any(_is_within(_absolute(data_dir.values[0]), path) for path in found):
        paths = ", ".join(found)
        raise KeyProblem(
            SCRIPT, f"--data-dir {data_dir.values[0][:200]} is none of the mount paths of storage: {paths}."
        )
    if not found and _edition(reader) in (EasEdition.API, EasEdition.CLUSTER):
        edition = EasEdition(_edition(reader)).label
        raise KeyProblem("storage", f"mounts nothing, and the {edition} edition keeps its pictures by path.")
    return found


def _free_folder(path: str, taken: Mapping[str, str]) -> str:
    """The path's last part; two mounts are two folders."""
    name = folder = posixpath.basename(path)
    number = 1
    while folder in taken.values():
        number += 1
        folder = f"{name}-{number}"
    return folder


def _absolute(path: str) -> str:
    return posixpath.normpath(posixpath.join(HOME, path))


def _is_within(path: str, mount: str) -> bool:
    return path == mount or path.startswith(f"{mount}/")


def _public_folders(reader: _Reader) -> list[str]:
    given = reader.flags
    return [folder for folder in PublicFolder.values if flags.last(given, flags.FOLDERS[folder][0])]


def _hidden_tabs(reader: _Reader) -> list[str]:
    flag = flags.last(reader.flags, flags.HIDE_TABS)
    names = [name.strip() for value in (flag.values if flag else ()) for name in value.split(",")]
    return [name for name in names if name]


def _min_ram(reader: _Reader) -> float | None:
    flag = flags.last(reader.flags, flags.MIN_RAM)
    if flag is None:
        return None
    if not re.fullmatch(r"\d{1,7}(\.\d{1,30})?(e-\d{1,3})?", flag.values[0]):
        raise KeyProblem(SCRIPT, f"--min-ram-reserved is {flag.values[0][:40]!r}; a number of gigabytes is accepted.")
    return float(flag.values[0])


def _switch(name: str) -> Callable[[_Reader], bool]:
    return lambda reader: flags.last(reader.flags, flags.SWITCHES[name]) is not None


# --- writing ----------------------------------------------------------------------------------------------------------


def document_with(
    document: Document | None, settings: Mapping[str, Any], *, known_mounts: Mapping[str, str]
) -> Document:
    """The document, saying these settings; nothing else of it is changed.

    Args:
        document: None makes one.
    """
    made: Document = copy.deepcopy(document if document is not None else SKELETON)
    for name, setting in SETTINGS.items():
        if name in _said_otherwise(made, settings, known_mounts):
            if isinstance(own := made.get(OURS), dict):
                own.pop(name, None)
            if setting.write:
                setting.write(made, settings[name], settings)
    for name in _said_otherwise(made, settings, known_mounts):
        made.setdefault(OURS, {})[name] = settings[name]
    if made.get(OURS) == {} and (document or {}).get(OURS) != {}:
        del made[OURS]
    return made


def _said_otherwise(document: Document, settings: Mapping[str, Any], known_mounts: Mapping[str, str]) -> list[str]:
    """Settings of which the document says something else; all while it cannot be read, half changed."""
    try:
        said = settings_of(document, known_mounts=known_mounts)
    except InvalidRequestError:
        return list(settings)
    return [name for name, value in settings.items() if said[name] != value]


def _into_metadata(name: str, per: Callable[[Any, Mapping[str, Any]], Any] = lambda value, _: value) -> Any:
    """Where the entry stands already, else flat."""

    def write(document: Document, value: Any, settings: Mapping[str, Any]) -> None:
        if (said := per(value, settings)) is None:
            return
        metadata = document.setdefault("metadata", {})
        group, _, rest = name.partition(".")
        if rest and rest in (metadata.get(group) or {}):
            metadata[group][rest] = said
        if not rest or name in metadata or rest not in (metadata.get(group) or {}):
            metadata[name] = said

    return write


def _threads(window: int, settings: Mapping[str, Any]) -> int | None:
    """Per instance, where that comes out even."""
    replicas = settings.get("replicas", 1)
    return window // replicas if window % replicas == 0 else None


def _write_edition(document: Document, edition: str, _: Mapping[str, Any]) -> None:
    metadata = document.setdefault("metadata", {})
    kinds = {value: kind for kind, value in EDITIONS_OF_TYPES.items()}
    metadata.pop("type", None)
    if edition in kinds:
        metadata["type"] = kinds[EasEdition(edition)]
    if edition != EasEdition.API:
        metadata["enable_webservice"] = True
    if edition not in (*kinds, EasEdition.STANDARD):
        document.setdefault(OURS, {})["edition"] = edition


def _write_max_delivery(document: Document, value: int, _: Mapping[str, Any]) -> None:
    document.setdefault("queue", {})["max_delivery"] = value


def _write_mounts(document: Document, mounts: Mapping[str, str], _: Mapping[str, Any]) -> None:
    """Entries of mounts that are gone go, new ones come without saying what is mounted; the data directory follows."""
    reader = _Reader(document, {})
    paths = {number: path.rstrip("/") for number, _, path in _entries(reader)}
    kept = [
        entry for number, entry in enumerate(document.get("storage") or []) if paths.get(number, "") in ("", *mounts)
    ]
    new = [path for path in mounts if path not in paths.values()]
    kept += [{"mount_path": path, "properties": {"resource_type": "model"}} for path in new]
    if kept or "storage" in document:
        document["storage"] = kept
    given = flags.last(reader.flags, flags.DATA_DIR)
    if not mounts:
        document["containers"][0]["script"] = flags.without(reader.script, flags.DATA_DIR)
    elif given is None or not any(_is_within(_absolute(given.values[0]), path) for path in mounts):
        _write_flag(document, flags.DATA_DIR, [next(iter(mounts))])


def _write_public_folders(document: Document, folders: list[str], settings: Mapping[str, Any]) -> None:
    now = _public_folders(_Reader(document, {}))
    given = flags.last(_Reader(document, {}).flags, flags.DATA_DIR)
    for folder, (flag, below) in flags.FOLDERS.items():
        if folder in folders and folder not in now:
            path = posixpath.join(_absolute(given.values[0]) if given else HOME, below)
            _write_flag(document, flag, [path] if below else [])
        elif folder in now and folder not in folders:
            _drop_flag(document, flag)


def _write_switch(name: str) -> Any:
    def write(document: Document, on: bool, _: Mapping[str, Any]) -> None:
        (_write_flag if on else _drop_flag)(document, flags.SWITCHES[name])

    return write


def _write_hidden_tabs(document: Document, names: list[str], _: Mapping[str, Any]) -> None:
    (_write_flag(document, flags.HIDE_TABS, names) if names else _drop_flag(document, flags.HIDE_TABS))


def _write_min_ram(document: Document, gigabytes: float | None, _: Mapping[str, Any]) -> None:
    if gigabytes is None:
        _drop_flag(document, flags.MIN_RAM)
    else:
        _write_flag(document, flags.MIN_RAM, [str(int(gigabytes) if gigabytes == int(gigabytes) else gigabytes)])


def _write_flag(document: Document, name: str, values: list[str] | tuple[str, ...] = ()) -> None:
    container = document["containers"][0]
    container["script"] = flags.with_flag(container["script"], name, values)


def _drop_flag(document: Document, name: str) -> None:
    container = document["containers"][0]
    container["script"] = flags.without(container["script"], name)


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    key: str
    """What the document calls it."""
    read: Callable[[_Reader], Any]
    write: Callable[[Document, Any, Mapping[str, Any]], None] | None = None
    kind: type | tuple[type, ...] = int
    """Of its value below our own key."""


def _only_ours(name: str, kind: type = int) -> Setting:
    return Setting(f"{OURS}.{name}", lambda _: default_of(name), None, kind)


SETTINGS: dict[str, Setting] = {
    "name": Setting("metadata.name", _name, _into_metadata("name"), str),
    "edition": Setting("metadata.type", _edition, _write_edition, str),
    "replicas": Setting("metadata.instance", _replicas, _into_metadata("instance")),
    "window": Setting('metadata["rpc.worker_threads"]', _window, _into_metadata("rpc.worker_threads", _threads)),
    "max_delivery": Setting("queue.max_delivery", _max_delivery, _write_max_delivery),
    "keepalive_seconds": Setting(
        'metadata["rpc.keepalive"]', _keepalive, _into_metadata("rpc.keepalive", lambda value, _: value * 1000)
    ),
    "max_queue_size": Setting(
        'metadata["rpc.max_queue_size"]',
        lambda reader: reader.whole("rpc.max_queue_size", default_of("max_queue_size"), first=0),
        _into_metadata("rpc.max_queue_size"),
    ),
    "rate_limit": Setting(
        'metadata["rpc.rate_limit"]',
        lambda reader: reader.whole("rpc.rate_limit", default_of("rate_limit"), first=0),
        _into_metadata("rpc.rate_limit"),
    ),
    "mounts": Setting("storage", _mounts, _write_mounts, dict),
    "public_folders": Setting(SCRIPT, _public_folders, _write_public_folders, list),
    "hidden_tabs": Setting(SCRIPT, _hidden_tabs, _write_hidden_tabs, list),
    **{name: Setting(SCRIPT, _switch(name), _write_switch(name), bool) for name in flags.SWITCHES},
    "min_ram_reserved_gb": Setting(SCRIPT, _min_ram, _write_min_ram, (int, float, type(None))),
    "max_payload_bytes": _only_ours("max_payload_bytes"),
    "max_frames": _only_ours("max_frames"),
    "pool": Setting(f"{OURS}.pool", lambda _: None, None, (str, type(None))),
}
"""Settings that a document says, by the field of a service. ``pool`` is a pool's name."""
OWN_KINDS = {name: setting.kind for name, setting in SETTINGS.items()}
