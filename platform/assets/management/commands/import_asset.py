"""`manage.py import_asset PATH --kind checkpoint`: takes a file or a model's folder in; prints its name, sha-256 and state.

`storage:PREFIX` instead of a path: the weights of that prefix below `imports/` of the asset storage.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.text import slugify
from tqdm import tqdm

from accounts.models import Team, User
from assets.companions import COMPANIONS, instruction_require_usable
from assets.conversion import convert
from assets.folders import PICKLED, Directory, folder_merge
from assets.hashing import sha256_of
from assets.intake import SETTLED, asset_process, asset_receive
from assets.models import Access, Asset, AssetKind, AssetState
from assets.selectors import same_bytes
from assets.sidecars import sidecars_of
from assets.storage_imports import object_import, weights_below
from assets.styles import styles_import
from assets.wildcards import wildcards_import
from common.errors import PlatformError
from gpuworker.contract.texts import INSTRUCTION, PROMPT_MARK

STYLES = "styles"
TEXTS = (STYLES, "wildcards")
"""Files that become rows and are not kept."""
IN_STORAGE = "storage:"
FOLDERS = (AssetKind.CHECKPOINT, *COMPANIONS)
"""Kinds that come as folders."""


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help=f"A file, a model's folder, or {IN_STORAGE}PREFIX.")
        parser.add_argument("--kind", required=True, choices=[*AssetKind.values, *TEXTS])
        parser.add_argument("--name", help="Default: the file's stem, or the folder's name.")
        parser.add_argument(
            "--instruction",
            help=f"Of a text generator: what a prompt is wrapped in; {PROMPT_MARK} stands for the prompt.",
        )
        access = parser.add_mutually_exclusive_group()
        access.add_argument("--public", action="store_true", help="For everybody (the default).")
        access.add_argument("--team", help="For this team only.")
        access.add_argument("--user", help="For this user only.")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["file"]
        if str(path).startswith(IN_STORAGE):
            self.take_storage_in(str(path).removeprefix(IN_STORAGE), options)
            return
        if not path.exists() or (path.is_dir() and options["kind"] not in FOLDERS):
            raise CommandError(f"There is no file {path}.")
        if options["instruction"] and not (path.is_dir() and options["kind"] == AssetKind.TEXT_GENERATOR):
            raise CommandError("An instruction goes with the folder of a text generator.")
        if options["kind"] in TEXTS:
            self.take_texts(path, options)
            return
        try:
            asset = self.take_folder_in(path, options) if path.is_dir() else self.take_in(path, options)
        except PlatformError as error:
            raise CommandError(error.message) from error
        except OSError as error:
            raise CommandError(f"{path} cannot be taken in: {error}.") from error
        if asset.state != AssetState.APPROVED:
            raise CommandError(f"{asset.name} {asset.sha256} {asset.state}: {asset.reason}")
        self.tell(asset)

    def tell(self, asset: Asset) -> None:
        self.stdout.write(f"{asset.name} {asset.sha256} {asset.state}")
        for name in same_bytes(Asset.objects.filter(sha256=asset.sha256, state__in=SETTLED)).get(asset.pk, ()):
            self.stderr.write(f"The same file is here as {name} already.")

    def take_storage_in(self, prefix: str, options: dict[str, Any]) -> None:
        """All that can be; then, if any could not, how many of how many."""
        if options["kind"] in TEXTS or options["instruction"]:
            raise CommandError("From the storage weights are taken in, nothing else.")
        refused = 0
        try:
            keys = weights_below(prefix)
            if options["name"] and len(keys) > 1:
                raise CommandError(f"One name for {len(keys)} files; give it for one file.")
            for key in keys:
                asset = object_import(key, kind=options["kind"], name=options["name"] or "", **access_of(options))
                if asset.state == AssetState.APPROVED:
                    self.tell(asset)
                else:
                    refused += 1
                    self.stderr.write(f"{key} {asset.state}: {asset.reason}")
        except PlatformError as error:
            raise CommandError(error.message) from error
        except OSError as error:
            raise CommandError(f"The storage cannot be read: {error}.") from error
        if refused:
            raise CommandError(f"{refused} of {len(keys)} were not taken in.")

    def take_texts(self, path: Path, options: dict[str, Any]) -> None:
        team = one(Team, name=slugify(options["team"])) if options["team"] else None
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                if options["kind"] == STYLES:
                    shown = f"{styles_import(file=file, team=team)} styles"
                else:
                    shown = f"{wildcards_import(file=file, name=options['name'] or path.stem, team=team)} lines"
        except PlatformError as error:
            raise CommandError(error.message) from error
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{path} cannot be read: {error}.") from error
        with path.open("rb") as stored:
            self.stdout.write(f"{path.stem} {sha256_of(stored)} {AssetState.APPROVED} ({shown})")

    def take_folder_in(self, path: Path, options: dict[str, Any]) -> Asset:
        with TemporaryDirectory(prefix="import-", dir=settings.FILE_UPLOAD_TEMP_DIR) as folder:
            merged = Path(folder) / f"{path.resolve().name}.safetensors"
            folder_merge(Directory(path, beside=self.beside(path, Path(folder), options)), merged)
            return self.take_in(merged, options, about=path.resolve().with_name(merged.name))

    def beside(self, path: Path, work: Path, options: dict[str, Any]) -> dict[str, Path]:
        """What is added to the folder as it lies there: weights made of a pickle where it has no others, an instruction."""
        added: dict[str, Path] = {}
        if options["kind"] in COMPANIONS and (path / PICKLED).is_file() and not any(path.glob("*.safetensors")):
            added["model.safetensors"] = work / "model.safetensors"
            convert(path / PICKLED, added["model.safetensors"])
        if options["instruction"]:
            instruction_require_usable(options["instruction"])
            added[INSTRUCTION] = work / INSTRUCTION
            added[INSTRUCTION].write_text(options["instruction"])
        return added

    def take_in(self, path: Path, options: dict[str, Any], about: Path | None = None) -> Asset:
        """Args: about: What files about it are named after, where that is not ``path``."""
        config = path.with_suffix(".yaml")
        sidecars = sidecars_of(about or path)
        for sentence in sidecars.passed_over:
            self.stderr.write(sentence)
        with ExitStack() as files:
            has_config = options["kind"] == AssetKind.CHECKPOINT and config.is_file()
            asset = asset_receive(
                file=files.enter_context(path.open("rb")),
                name=options["name"] or path.name,
                kind=options["kind"],
                config=files.enter_context(config.open("rb")) if has_config else None,
                **access_of(options),
                card=sidecars.card,
                preview=sidecars.preview,
            )
        with tqdm(total=asset.size_bytes, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
            return asset_process(asset.pk, progress=bar.update)


def access_of(options: dict[str, Any]) -> dict[str, Any]:
    teams = (one(Team, name=slugify(options["team"])),) if options["team"] else ()
    users = (one(User, username=options["user"]),) if options["user"] else ()
    access = Access.TEAMS if teams else Access.USERS if users else Access.PUBLIC
    return {"access": access, "teams": teams, "users": users}


def one(model: Any, **lookup: str) -> Any:
    found = model.objects.filter(**lookup).first()
    if found is None:
        raise CommandError(f"There is no {model._meta.verbose_name} {next(iter(lookup.values()))!r}.")
    return found
