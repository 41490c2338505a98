"""The prompt grammar and the encoder: text in, tracks of conditioning out."""

from __future__ import annotations

import pytest
import torch

from gpuworker.engine.models.loader import Checkpoint, load_checkpoint
from gpuworker.engine.prompts.encoder import PromptEncoder, PromptTrack, chunks_of
from gpuworker.engine.prompts.parser import edit_schedule, parse_attention, split_composition
from tests.engine.recordings import checkpoint_file, internals, needs_recordings, numbers

BREAK = "BREAK"


@pytest.fixture(scope="module")
def loaded(checkpoint) -> Checkpoint:
    return load_checkpoint(checkpoint.path, device=torch.device("cpu"), dtype=torch.float32)


def attention(text):
    return [BREAK if piece.is_break else (piece.text, round(piece.weight, 6)) for piece in parse_attention(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("a (photo:1.3) of [it]", [("a ", 1.0), ("photo", 1.3), (" of ", 1.0), ("it", 0.909091)]),
        ("((a)) (b", [("a", 1.21), (" ", 1.0), ("b", 1.1)]),
        (r"\(lit\) [x:1.2]", [("(lit) ", 1.0), ("x:1.2", 0.909091)]),
        ("stray ) and ]", [("stray ) and ]", 1.0)]),
        (r"a\b", [("ab", 1.0)]),
        ("(a:0)", [("a", 0.0)]),
        ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
        ("(a BREAK b:1.2)", [("a", 1.2), BREAK, ("b", 1.2)]),
        ("(x:.5.5)", [("x:.5.5", 1.1)]),
    ],
)
def test_attention_is_read(text, expected):
    assert attention(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", [(10, "plain")]),
        ("a [cat:dog:0.5] x", [(5, "a cat x"), (10, "a dog x")]),
        ("[a:b:4]", [(4, "a"), (10, "b")]),
        ("[late:0.3]", [(3, ""), (10, "late")]),
        ("[a::0.3]", [(3, "a"), (10, "")]),
        ("[a:b:5.]", [(10, "a")]),
        ("[a:b:-1]", [(10, "b")]),
        ("[a:[b:c:0.6]:0.3]", [(3, "a"), (6, "b"), (10, "c")]),
        ("[(a:1.2): b : 0.5 ]", [(5, "(a:1.2)"), (10, " b ")]),
        ("a [b] (c:1.2)", [(10, "a [b] (c:1.2)")]),
        (r"\[a:b:5\]", [(10, r"\[a:b:5\]")]),
        ("[a:b", [(10, "[a:b")]),
        ("a | [b:c:5]", [(10, "a | [b:c:5]")]),
        ("[[[", [(10, "[[[")]),
    ],
)
def test_editing_is_scheduled(text, expected):
    assert edit_schedule(text, 10) == expected


def test_alternation_changes_every_step():
    assert [text for _, text in edit_schedule("[a|b|]c", 4)] == ["ac", "bc", "c", "ac"]


@pytest.mark.parametrize(
    "text", ["(" * 1500, "[" * 1500, "[a:" * 700, "\\"], ids=["round", "square", "groups", "backslash"]
)
def test_hostile_prompt_is_plain_text(text):
    assert edit_schedule(text, 10) == [(10, text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a:1.2 AND b :0.5", [("a", 1.2), (" b", 0.5)]),
        ("a AND b:-1 AND c", [("a", 1.0), (" b", -1.0), (" c", 1.0)]),
        ("a ANDb and c", [("a ANDb and c", 1.0)]),
        ("12:30", [("12", 30.0)]),
    ],
)
def test_composition_is_split(text, expected):
    assert split_composition(text) == expected


def test_long_text_breaks_at_a_near_comma():
    first, second = chunks_of("a " * 70 + ", " + "b " * 10, "Original")
    assert (len(first.tokens), len(second.tokens)) == (71, 10)


def test_long_text_without_commas_breaks_at_75():
    assert [len(chunk.tokens) for chunk in chunks_of("a " * 100, "Original")] == [75, 25]


def test_break_begins_a_chunk_and_an_empty_text_has_one():
    assert len(chunks_of("a BREAK b BREAK c", "Original")) == 3
    assert [len(chunk.framed_tokens) for chunk in chunks_of("", "Original")] == [77]


def test_emphasis_none_reads_no_brackets():
    assert len(chunks_of("(a:1.5)", "None")[0].tokens) > len(chunks_of("(a:1.5)", "Ignore")[0].tokens)


def test_first_text_lasts_through_its_last_call():
    track = PromptTrack(((2, torch.tensor(1)), (4, torch.tensor(2))))
    assert [int(track.at(call)) for call in range(6)] == [1, 1, 1, 2, 2, 1]


def encode(encoder, loaded, prompt, **changes):
    options = {"steps": 4, "clip_skip": 1, "emphasis": "Original", "checkpoint_key": "x", **changes}
    return encoder.encode(prompt, "", checkpoint=loaded, **options).positive[0].at(0)


def test_h7_text_is_encoded_once(loaded):
    encoder = PromptEncoder()
    first = encode(encoder, loaded, "a cat")
    assert encode(encoder, loaded, "a cat") is not None
    assert len(encoder.cache) == 2, "the prompt and the empty negative prompt"
    assert torch.equal(encode(encoder, loaded, "a cat"), first)


@pytest.mark.parametrize("change", [{"clip_skip": 2}, {"emphasis": "No norm"}, {"checkpoint_key": "y"}], ids=str)
def test_h7_other_circumstances_are_encoded_anew(loaded, change):
    encoder = PromptEncoder()
    encode(encoder, loaded, "a (cat:1.4)")
    encode(encoder, loaded, "a (cat:1.4)", **change)
    assert len(encoder.cache) == 4


def test_original_emphasis_keeps_the_mean_of_the_chunk(loaded):
    plain = encode(PromptEncoder(), loaded, "a cat")
    loud = encode(PromptEncoder(), loaded, "a (cat:1.6)")
    assert not torch.allclose(plain, loud)
    assert loud.mean().item() == pytest.approx(plain.mean().item(), abs=1e-5)


@needs_recordings
def test_recorded_attention_is_met():
    for text, expected in internals("prompt_parsing.json")["parse_attention"].items():
        pieces = [
            (BREAK, -1) if piece.is_break else (piece.text, pytest.approx(piece.weight))
            for piece in parse_attention(text)
        ]
        assert [(word, -1 if word == BREAK else weight) for word, weight in expected] == pieces, text


@needs_recordings
@pytest.mark.parametrize("steps", [10, 13])
def test_recorded_schedules_are_met(steps):
    for text, expected in internals("prompt_parsing.json")["schedules"][str(steps)].items():
        assert edit_schedule(text, steps) == [tuple(entry) for entry in expected], text


@needs_recordings
def test_recorded_compositions_are_met():
    for text, (weights, texts) in internals("prompt_parsing.json")["and_split"].items():
        assert split_composition(text) == [(texts[index], weight) for index, weight in weights], text


@needs_recordings
def test_recorded_chunks_are_met():
    for text, expected in internals("tokens.json")["tokens"].items():
        chunks = [
            {"tokens": chunk.framed_tokens, "multipliers": chunk.framed_weights}
            for chunk in chunks_of(text, "Original")
        ]
        assert chunks == expected["chunks"], text


@needs_recordings
def test_recorded_conditioning_is_met():
    file, recorded = checkpoint_file(), numbers("conditioning.npz")
    tiny = load_checkpoint(file.path, config_path=file.config_path, device=torch.device("cpu"), dtype=torch.float32)
    for index, text in enumerate(internals("tokens.json")["prompts"]):
        difference = encode(PromptEncoder(), tiny, text) - torch.tensor(recorded[f"cond_{index}"][0])
        assert difference.abs().max() < 1e-4, text
