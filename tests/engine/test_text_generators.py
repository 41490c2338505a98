"""Long prompts from short ones, by real language models with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from assets.folders import Directory, folder_merge
from gpuworker.contract import Weights, WeightsFile
from gpuworker.contract.texts import BEAUTIFUL_PROMPT, BEAUTIFUL_PROMPT_2, Habits, TextRecipe, TextSpec, habits_of
from gpuworker.engine import DiffusersRenderer
from gpuworker.engine.errors import CheckpointError, InvalidSpecError
from gpuworker.engine.models.text_generators import load_text_generator
from tests.engine.companions import a_text_generator

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
MODEL = Weights(name="writer", sha256="0" * 64)


@pytest.fixture(params=["bloom", "gpt2"])
def folder(request, tmp_path) -> Path:
    return a_text_generator(tmp_path / "writer", family=request.param)


def merged(folder: Path) -> Path:
    target = folder.with_suffix(".safetensors")
    folder_merge(Directory(folder), target)
    return target


def a_spec(path: Path, **changes) -> TextSpec:
    recipe = TextRecipe(prompt="a red circle", model=MODEL, count=2, seed=7)
    return TextSpec(replace(recipe, **changes), {MODEL.sha256: WeightsFile(path)})


def written(renderer: DiffusersRenderer, spec: TextSpec) -> tuple[str, ...]:
    done = renderer.write(spec, on_step=lambda step, steps: None, should_stop=lambda: False)
    assert done is not None and done.gpu_us > 0
    return done.prompts


def test_a_loaded_model_computes_what_transformers_computes(folder):
    loaded = load_text_generator(merged(folder), **CPU)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = AutoTokenizer.from_pretrained(folder)("a green meadow").input_ids
    assert loaded.tokenizer.encode("a green meadow").ids == asked
    with torch.inference_mode():
        given = torch.tensor([asked])
        assert torch.equal(loaded.model(given).logits, theirs(given).logits)


def test_a_seed_gives_the_same_prompts_and_the_next_one_others(folder):
    renderer, path = DiffusersRenderer(), merged(folder)
    first = written(renderer, a_spec(path))
    assert first == written(DiffusersRenderer(), a_spec(path)) and len(set(first)) == 2
    assert all(text.isprintable() and text for text in first)
    (following,) = written(renderer, a_spec(path, seed=8, count=1))
    assert following == first[1]


def test_the_instruction_and_the_habits_change_what_is_written(folder):
    renderer, path = DiffusersRenderer(), merged(folder)
    plain = written(renderer, a_spec(path))
    instructed = written(renderer, a_spec(path, habits=Habits(instruction="Input: {prompt}\nOutput:")))
    colder = written(renderer, a_spec(path, habits=Habits(temperature=0.1)))
    assert len({plain, instructed, colder}) == 3


def test_a_model_is_loaded_once_and_makes_room_for_others(folder):
    renderer, path = DiffusersRenderer(), merged(folder)
    written(renderer, a_spec(path))
    kept = renderer.shelf._kept
    assert kept.used_bytes == load_text_generator(path, **CPU).size_bytes and len(kept) == 1
    path.write_bytes(path.read_bytes()[:100])
    written(renderer, a_spec(path))


def test_writing_stops_when_told_to(folder):
    steps: list[int] = []
    spec = a_spec(merged(folder))
    stop_after_three = {"on_step": lambda step, _: steps.append(step), "should_stop": lambda: len(steps) == 3}
    assert DiffusersRenderer().write(spec, **stop_after_three) is None and steps == [1, 2, 3]


def test_a_prompt_longer_than_the_model_reads_is_refused(tmp_path):
    path = merged(a_text_generator(tmp_path / "writer", family="gpt2"))
    with pytest.raises(InvalidSpecError, match=r"The prompt is \d+ tokens long with its instruction; .* at most 112"):
        written(DiffusersRenderer(), a_spec(path, prompt="q!z" * 100))


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path):
    folder = a_text_generator(tmp_path / "writer")
    (folder / "tokenizer.json").write_text('{"model": {"type": "Magic"}}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        load_text_generator(merged(folder), **CPU)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pai-bloom-1b1-text2prompt-sd", BEAUTIFUL_PROMPT),
        ("pai-bloom-1b1-text2prompt-sd-v2", BEAUTIFUL_PROMPT_2),
        ("MagicPrompt", Habits()),
    ],
)
def test_published_models_are_asked_as_their_cards_say(name, expected):
    assert habits_of(name) == expected
    assert habits_of(name, "Say {prompt}.") == Habits(instruction="Say {prompt}.")
