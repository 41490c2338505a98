"""Language models are taken in by folder, and never with anything that would be run."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from django.core.management import CommandError, call_command
from PIL import Image
from safetensors.torch import load_file

from assets.intake import asset_process, asset_receive
from assets.models import Asset
from gpuworker.contract.texts import BEAUTIFUL_PROMPT, BEAUTIFUL_PROMPT_2, Habits
from gpuworker.engine.models.text_generators import load_text_generator
from tests.engine.companions import a_safety_checker, a_text_generator

pytestmark = pytest.mark.django_db


@pytest.fixture
def folder(tmp_path) -> Path:
    return a_text_generator(tmp_path / "writer")


def taken_in(folder: Path, **options: Any) -> Asset:
    output = io.StringIO()
    call_command("import_asset", str(folder), kind="text_generator", stdout=output, **options)
    return Asset.objects.get(sha256=output.getvalue().split()[1])


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("options", "habits"),
    [
        ({}, Habits()),
        ({"name": "pai-bloom-1b1-text2prompt-sd"}, BEAUTIFUL_PROMPT),
        ({"name": "pai-bloom-1b1-text2prompt-sd-v2"}, BEAUTIFUL_PROMPT_2),
        ({"instruction": "Say more: {prompt}"}, Habits(instruction="Say more: {prompt}")),
    ],
)
def test_a_folder_is_taken_in_with_how_its_model_is_asked(folder, options, habits):
    asset = taken_in(folder, **options)
    assert (asset.state, asset.family) == ("approved", "bloom")
    assert Habits.from_json(asset.metadata) == habits


def test_a_zipped_folder_is_the_same_model(folder):
    archive = Path(shutil.make_archive(str(folder.parent / "packed"), "zip", folder))
    with archive.open("rb") as file:
        asset = asset_process(asset_receive(file=file, name="writer", kind="text_generator").pk)
    assert (asset.state, asset.sha256) == ("approved", taken_in(folder).sha256)


def test_pickled_weights_are_converted_as_every_pickle_is(folder, tmp_path):
    plain = load_file(folder / "model.safetensors")
    torch.save(plain, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    asset = taken_in(folder)
    path = tmp_path / "assets" / asset.file_key
    loaded = load_text_generator(path, device=torch.device("cpu"), dtype=torch.float32).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in plain.items())


def test_code_that_came_along_is_refused(folder):
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    with pytest.raises(CommandError, match="names code of its own"):
        taken_in(folder)


def test_no_file_but_weights_and_known_texts_is_kept(folder, tmp_path):
    (folder / "modeling_own.py").write_text("raise SystemExit")
    asset = taken_in(folder)
    assert b"SystemExit" not in (tmp_path / "assets" / asset.file_key).read_bytes()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: change(folder / "config.json", model_type="mystery"), "'mystery'; accepted are bloom, gpt2"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"lacks tokenizer\.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "describes no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), r"tokenizer\.json is not valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no word embeddings"),
        (lambda folder: (folder / "config.json").unlink(), r"no model_index\.json or config\.json"),
        (lambda folder: (folder / "instruction.txt").write_text("no place"), r"holds \{prompt\}"),
    ],
    ids=[
        "architecture",
        "no tokenizer",
        "empty tokenizer",
        "broken tokenizer",
        "no weights",
        "no config",
        "instruction",
    ],
)
def test_a_folder_that_is_no_language_model_is_refused_with_the_reason(folder, spoil, reason):
    spoil(folder)
    with pytest.raises(CommandError, match=reason):
        taken_in(folder)


def test_weights_alone_are_not_enough(folder):
    with (folder / "model.safetensors").open("rb") as file:
        asset = asset_process(asset_receive(file=file, name="writer", kind="text_generator").pk)
    assert (asset.state, "take in the model's folder" in asset.reason) == ("quarantined", True)


@pytest.mark.parametrize("kind", ["checkpoint", "safety_filter"])
def test_a_language_model_is_nothing_else(folder, kind):
    with pytest.raises(CommandError):
        call_command("import_asset", str(folder), kind=kind)


def test_an_instruction_goes_with_a_text_generator_only(folder):
    with pytest.raises(CommandError, match="goes with the folder of a text generator"):
        call_command("import_asset", str(folder), kind="safety_filter", instruction="{prompt}")
    with pytest.raises(CommandError, match=r"holds \{prompt\}"):
        taken_in(folder, instruction="no place for it")


# --- safety filters --------------------------------------------------------------------------------------------------


@pytest.fixture
def watchful(tmp_path) -> Path:
    black, white = (Image.new("RGB", (32, 32), colour) for colour in ("black", "white"))
    return a_safety_checker(tmp_path / "watchful", caught=black, let_through=white)


def test_a_safety_checker_is_taken_in_by_its_folder(watchful):
    call_command("import_asset", str(watchful), kind="safety_filter", verbosity=0)
    asset = Asset.objects.get(kind="safety_filter")
    assert (asset.state, asset.family, asset.name, asset.metadata) == ("approved", "safety_checker", "watchful", {})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "config.json").write_text('{"model_type": "clip"}'), "describes no vision model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "they lack concept_embeds"),
        (lambda folder: change(folder / "config.json", auto_map={}), "names code of its own"),
    ],
    ids=["no vision model", "no weights", "code"],
)
def test_a_folder_that_is_no_safety_checker_is_refused_with_the_reason(watchful, spoil, reason):
    spoil(watchful)
    with pytest.raises(CommandError, match=reason):
        call_command("import_asset", str(watchful), kind="safety_filter")


def test_a_safety_checker_writes_no_prompts(watchful):
    with pytest.raises(CommandError, match="'clip'; accepted are bloom, gpt2"):
        taken_in(watchful)
