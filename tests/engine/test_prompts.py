"""The prompt grammar, the cutting into chunks and the encoder of SD 1: text in, tracks of conditioning out."""

from __future__ import annotations

import time

import pytest
import torch

from gpuworker.contract import Settings
from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.models.loader import Checkpoint, load_checkpoint
from gpuworker.engine.prompts.cleaning import cleaned
from gpuworker.engine.prompts.encoder import Cond, PromptEncoder, PromptRequest, PromptTrack
from gpuworker.engine.prompts.parser import edit_schedule, parse_attention, split_composition
from gpuworker.engine.prompts.tokens import chunks_of
from tests.engine.conftest import RANDOM
from tests.engine.recordings import checkpoint_path, internals, needs_recordings, numbers

BREAK = "BREAK"


@pytest.fixture(scope="module")
def loaded(checkpoint) -> Checkpoint:
    path = checkpoint[RANDOM.sha256].path
    return load_checkpoint(path, device=torch.device("cpu"), dtype=torch.float32)


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
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("(b: 1.5 )", [("b", 1.5)]),
        ("(b:1.5", [("b:1.5", 1.1)]),
        ("(b:1.5 c)", [("b:1.5 c", 1.1)]),
        ("b:1.5)", [("b:1.5)", 1.0)]),
        ("(a, (b:1.2):1.5)", [("a, ", 1.5), ("b", 1.8)]),
        (r"(a\(x\):1.3)", [("a(x)", 1.3)]),
        ("[a:1.3)", [("a:1.3)", 0.909091)]),
        ("(a))", [("a", 1.1), (")", 1.0)]),
        ("(a:1.2)(b:1.2)", [("ab", 1.2)]),
        ("aBREAKb", [("aBREAKb", 1.0)]),
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
        ("a [dog:0.5] x", [(5, "a  x"), (10, "a dog x")]),
        ("a [dog::5]", [(5, "a dog"), (10, "a ")]),
        ("[red:blue:1.5]", [(10, "red")]),
        ("[red:blue:20]", [(10, "red")]),
        ("[red:blue:0.0]", [(10, "blue")]),
        ("[x:[y:z:6]:3]", [(3, "x"), (6, "y"), (10, "z")]),
        ("[(a:1.2):(b:0.8):4]", [(4, "(a:1.2)"), (10, "(b:0.8)")]),
        ("[a:b:.4e1]", [(10, "a")]),
        ("[a:b:0.4e1]", [(10, "a")]),
        ("[a:b:4e0]", [(4, "a"), (10, "b")]),
        ("[ab]", [(10, "[ab]")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("[a|b", [(10, "[a|b")]),
        (r"a\[b:c:3\]", [(10, r"a\[b:c:3\]")]),
    ],
)
def test_editing_is_scheduled(text, expected):
    assert edit_schedule(text, 10) == expected


def test_alternation_changes_every_step():
    assert [text for _, text in edit_schedule("[a|b|]c", 4)] == ["ac", "bc", "c", "ac"]


def test_alternation_inside_an_edit_follows_both():
    schedule = edit_schedule("[[a|b]:c:4]", 20)
    assert [text for _, text in schedule] == ["a", "b", "a", "b"] + ["c"] * 16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a:b:0.5]", [(10, "b")]),
        ("[a:b:1.5]", [(5, "a"), (10, "b")]),
        ("[a:b:25]", [(5, "a"), (10, "b")]),
        ("[a:b:2.0]", [(10, "a")]),
    ],
)
def test_hires_pass_goes_on_counting(text, expected):
    assert edit_schedule(text, 10, first_pass_steps=20) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a:b:0.5]", [(10, "a"), (20, "b")]),
        ("[a:b:5.0]", [(5, "a"), (20, "b")]),
        ("[a:b:.25]", [(5, "a"), (20, "b")]),
    ],
)
def test_old_scheduling_says_the_same_in_both_passes(text, expected):
    assert edit_schedule(text, 20, old_scheduling=True) == expected
    assert edit_schedule(text, 10, first_pass_steps=20, old_scheduling=True) == expected


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
        ("a AND b : -1.5 ", [("a", 1.0), (" b", -1.5)]),
        ("aAND b", [("aAND b", 1.0)]),
        ("AND b", [("", 1.0), (" b", 1.0)]),
        ("a:1.2.3", [("a:1.2.3", 1.0)]),
        ("(a:1.2) AND b", [("(a:1.2)", 1.0), (" b", 1.0)]),
        (":0.5", [("", 0.5)]),
    ],
)
def test_composition_is_split(text, expected):
    assert split_composition(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "a" * 16_000,
        "(a" * 8_000,
        "(" * 8_000 + ")" * 8_000,
        "(a [b " * 2_600 + "[c|d]",
        "((" * 500 + "a" + "))" * 500,
        " " * 15_000 + "x: ",
        "a:" * 8_000,
        "a AND " * 2_600,
        "<" * 16_000,
    ],
    ids=["letters", "round", "closed", "mixed", "nested", "blanks", "colons", "compositions", "tags"],
)
def test_prompt_of_16_kib_is_read_in_time(text):
    begin = time.process_time()
    for part, _ in split_composition(text):
        for _, variant in edit_schedule(part, 20)[:2]:
            chunks_of(variant, "Original")
    assert time.process_time() - begin < 3


# --- chunks ----------------------------------------------------------------------------------------------------------


def lengths(text, **options):
    return [len(chunk.tokens) for chunk in chunks_of(text, "Original", **options)]


def test_long_text_breaks_at_a_near_comma():
    assert lengths("a " * 70 + ", " + "b " * 10) == [71, 10]


@pytest.mark.parametrize(("backtrack", "expected"), [(0, [75, 6]), (4, [75, 6]), (5, [71, 10]), (60, [71, 10])])
def test_comma_counts_within_the_backtrack_setting(backtrack, expected):
    assert lengths("a " * 70 + ", " + "b " * 10, comma_backtrack=backtrack) == expected


def test_comma_that_is_itself_the_first_too_many_does_not_count():
    assert lengths("a " * 70 + ", " + "b " * 4 + ", c") == [75, 2]


def test_long_text_without_commas_breaks_at_75():
    assert lengths("a " * 100) == [75, 25]


def test_break_begins_a_chunk_and_an_empty_text_has_one():
    assert len(chunks_of("a BREAK b BREAK c", "Original")) == 3
    assert [len(chunk.framed_tokens) for chunk in chunks_of("", "Original")] == [77]


def test_emphasis_none_reads_no_brackets():
    assert len(chunks_of("(a:1.5)", "None")[0].tokens) > len(chunks_of("(a:1.5)", "Ignore")[0].tokens)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("\u201cred\u201d \u2018car\u2019", "\"red\" 'car'"),
        ("ﬁre", "fire"),
        ("Ｆｕｌｌ\u3000ｗｉｄｔｈ", "Full width"),
        ("cats &amp; dogs &#233;", "cats & dogs é"),
        ("a &lt; b < c", "a &lt; b < c"),
        ("bell\x07 \ufeffmark", "bell mark"),
        ("e\u0301", "é"),
        ("&bogus;", "&bogus;"),
        ("\ud83d\ude00 \ud800", "\U0001f600 \ufffd"),
    ],
)
def test_typographic_characters_become_plain_ones(text, expected):
    assert cleaned(text) == expected


# --- encoding --------------------------------------------------------------------------------------------------------


def test_first_text_lasts_through_its_last_call():
    first, second = Cond(torch.tensor([1])), Cond(torch.tensor([2]))
    track = PromptTrack(((2, first), (4, second)))
    assert [track.at(call) for call in range(6)] == [first, first, first, second, second, first]


def encoded(loaded, prompt, negative="", *, encoder=None, key="x", **changes):
    request = PromptRequest(prompt=prompt, negative_prompt=negative, **{"steps": 4, **changes})
    return (encoder or PromptEncoder()).encode(request, checkpoint=loaded, weights_key=key)


def encode(loaded, prompt, **changes):
    return encoded(loaded, prompt, **changes).positive[0].at(0).context


def test_h7_text_is_encoded_once(loaded):
    encoder = PromptEncoder()
    first = encode(loaded, "a cat", encoder=encoder)
    second = encode(loaded, "a cat", encoder=encoder)
    assert len(encoder.cache) == 2, "the prompt and the empty negative prompt"
    assert torch.equal(second, first)
    assert second.data_ptr() == first.data_ptr()


@pytest.mark.parametrize(
    "change",
    [
        {"clip_skip": 2},
        {"emphasis": "No norm"},
        {"key": "y"},
        {"settings": Settings(comma_padding_backtrack=5)},
    ],
    ids=str,
)
def test_h7_other_circumstances_are_encoded_anew(loaded, change):
    encoder = PromptEncoder()
    encode(loaded, "a (cat:1.4)", encoder=encoder)
    encode(loaded, "a (cat:1.4)", encoder=encoder, **change)
    assert len(encoder.cache) == 4


def test_original_emphasis_keeps_the_mean_of_the_chunk(loaded):
    plain, loud = encode(loaded, "a cat"), encode(loaded, "a (cat:1.6)")
    assert not torch.allclose(plain, loud)
    assert loud.mean().item() == pytest.approx(plain.mean().item(), abs=1e-5)


def test_clip_skip_beyond_the_layers_is_refused_by_name(loaded):
    layers = loaded.text[0].model.config.num_hidden_layers
    assert encode(loaded, "a", clip_skip=layers + 1).shape[0] == 77
    with pytest.raises(InvalidSpecError, match="clip_skip"):
        encode(loaded, "a", clip_skip=layers + 2)


def test_parts_of_a_composition_get_one_length_by_their_last_vector(loaded):
    short, long = encoded(loaded, "a AND " + "b " * 80).positive
    alone = encode(loaded, "a")
    assert short.tokens == long.tokens == 154
    assert torch.equal(short.at(0).context[:77], alone)
    assert torch.equal(short.at(0).context[77:], alone[-1:].expand(77, -1))


def test_shorter_side_is_padded_with_empty_chunks(loaded):
    empty, settings = encode(loaded, ""), Settings(pad_cond_uncond=True)
    positive = encoded(loaded, "a", "b " * 160, settings=settings).positive[0].at(0).context
    negative = encoded(loaded, "b " * 160, "a", settings=settings).negative.at(0).context
    assert torch.equal(positive, negative)
    assert torch.equal(positive, torch.cat([encode(loaded, "a"), empty, empty]))


def test_old_padding_repeats_or_cuts_the_negative_prompt_only(loaded):
    settings = Settings(pad_cond_uncond_v0=True, pad_cond_uncond=True)
    cut = encoded(loaded, "a", "b " * 80, settings=settings)
    assert cut.positive[0].tokens == cut.negative.tokens == 77
    repeated = encoded(loaded, "b " * 80, "a", settings=settings).negative.at(0).context
    assert torch.equal(repeated[77:], repeated[76:77].expand(77, -1))


def test_unpadded_sides_keep_their_lengths(loaded):
    made = encoded(loaded, "a", "b " * 80)
    assert (made.positive[0].tokens, made.negative.tokens) == (77, 154)


def test_edit_gives_its_variants_one_length_and_the_same_text_one_conditioning(loaded):
    track = encoded(loaded, "[a|" + "b " * 80 + "]", steps=4).positive[0]
    conds = [cond for _, cond in track.variants]
    assert {len(cond.context) for cond in conds} == {154}
    assert conds[0] is conds[2] and conds[1] is conds[3]


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
def test_recorded_schedules_of_the_hires_pass_are_met():
    for text, expected in internals("prompt_parsing.json")["schedules"]["10, hires pass with 10 hires steps"].items():
        assert edit_schedule(text, 10, first_pass_steps=10) == [tuple(entry) for entry in expected], text


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
    path, recorded = checkpoint_path("tiny-sd15"), numbers("conditioning.npz")
    tiny = load_checkpoint(path, config_path=path.with_suffix(".yaml"), device=torch.device("cpu"), dtype=torch.float32)
    for index, text in enumerate(internals("tokens.json")["prompts"]):
        difference = encode(tiny, text) - torch.tensor(recorded[f"cond_{index}"][0])
        assert difference.abs().max() < 1e-4, text
    for clip_skip in (2, 3):
        found = encode(tiny, internals("tokens.json")["prompts"][1], clip_skip=clip_skip)
        difference = found - torch.tensor(recorded[f"cond_1_clip_skip_{clip_skip}"][0])
        assert difference.abs().max() < 1e-4, clip_skip
