"""Textual inversion: files become vectors, names in prompts become slots, vectors take the place of token embeddings."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.prompts.embeddings import read_embeddings
from gpuworker.engine.prompts.encoder import PromptEncoder
from gpuworker.engine.prompts.tokens import CHUNK_TOKENS, chunks_of
from tests.engine.texts import CLIP_WIDTH, OPEN_CLIP_WIDTH, context, embedding, encoded, text_checkpoint


@pytest.fixture(scope="module")
def sd1():
    return text_checkpoint("sd1")


@pytest.fixture(scope="module")
def sdxl():
    return text_checkpoint("sdxl")


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "widths", "slots"),
    [
        ({"emb_params": torch.ones(2, 8)}, (8,), 2),
        ({"string_to_param.*": torch.ones(3, 8), "string_to_token.*": torch.tensor([265])}, (8,), 3),
        ({"<concept>": torch.ones(8)}, (8,), 1),
        ({"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 12)}, (8, 12), 2),
    ],
    ids=["emb_params", "converted", "concept", "sdxl"],
)
def test_embedding_file_is_read(tmp_path, tensors, widths, slots):
    save_file(tensors, tmp_path / "style.safetensors")
    (found,) = read_embeddings(tmp_path / "style.safetensors")
    assert (found.name, found.widths, found.slots) == ("style", widths, slots)
    assert found.named("other").digest == found.digest


def test_embeddings_inside_a_lora_file_keep_their_names(tmp_path):
    tensors = {
        "lora_unet_x.lora_up.weight": torch.ones(4, 4),
        "bundle_emb.one.string_to_param.*": torch.ones(2, 8, dtype=torch.float16),
        "bundle_emb.two.clip_l": torch.ones(1, 8),
        "bundle_emb.two.clip_g": torch.ones(1, 12),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    found = {item.name: item for item in read_embeddings(tmp_path / "lora.safetensors")}
    assert {name: item.widths for name, item in found.items()} == {"one": (8,), "two": (8, 12)}
    assert found["one"].vectors[0].dtype == torch.float32


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.ones(2, 8), "b": torch.ones(2, 8)},
        {"emb_params": torch.ones(1, 2, 8)},
        {"emb_params": torch.ones(0, 8)},
        {f"lora_unet_{index}.alpha": torch.ones(1) for index in range(20)},
    ],
    ids=["two", "three dimensions", "empty", "lora"],
)
def test_file_without_an_embedding_has_none(tmp_path, tensors):
    save_file(tensors, tmp_path / "file.safetensors")
    assert read_embeddings(tmp_path / "file.safetensors") == ()


def test_unreadable_file_has_no_embedding(tmp_path):
    path = tmp_path / "file.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    assert read_embeddings(path) == ()


# --- names -----------------------------------------------------------------------------------------------------------


def slots_of(text, *embeddings):
    """(chunk, first slot, name) of every embedding placed."""
    return [
        (index, placement.position, placement.embedding.name)
        for index, chunk in enumerate(chunks_of(text, "Original", embeddings=embeddings))
        for placement in chunk.placements
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a style", [(0, 1, "style")]),
        ("a STYLE, x", [(0, 1, "style")]),
        ("a (Style:1.3)", [(0, 1, "style")]),
        ("styles stylex lifestyle", []),
        ("a restyle", [(0, 2, "style")]),
        ("style2 style_b", [(0, 0, "style"), (0, 3, "style")]),
        ("a my-style", [(0, 1, "my-style")]),
        ("my - style", [(0, 0, "my-style")]),
    ],
)
def test_name_is_found_as_a_run_of_tokens_in_any_case_longest_first(text, expected):
    assert slots_of(text, embedding("style", 2, 8), embedding("my-style", 2, 8)) == expected


def test_of_names_with_equal_tokens_the_first_listed_counts():
    first, second = embedding("Style", 1, 8), embedding("style", 2, 8)
    assert slots_of("style", first, second) == [(0, 0, "Style")]


def test_embedding_takes_its_slots_at_the_weight_around_it():
    (chunk,) = chunks_of("a (style:1.3) b", "Original", embeddings=[embedding("style", 3, 8)])
    assert chunk.tokens[1:4] == [0, 0, 0] and len(chunk.tokens) == 5
    assert chunk.weights == [1.0, 1.3, 1.3, 1.3, 1.0]


@pytest.mark.parametrize(("before", "expected"), [(72, (0, 72)), (73, (1, 0)), (75, (1, 0))])
def test_embedding_is_never_split_over_two_chunks(before, expected):
    ((chunk, position, _),) = slots_of("a " * before + "style", embedding("style", 3, 8))
    assert (chunk, position) == expected


def test_embedding_longer_than_a_chunk_is_refused_by_name():
    with pytest.raises(InvalidSpecError, match="style"):
        slots_of("a style", embedding("style", CHUNK_TOKENS + 1, 8))


def test_embedding_behind_the_comma_of_a_full_chunk_leaves_its_vectors_there():
    """A1111's own slip: only the slots move on."""
    text = "a " * 70 + ", style " + "b " * 5
    first, second = chunks_of(text, "Original", embeddings=[embedding("style", 2, 8)])
    assert (len(first.tokens), len(second.tokens)) == (71, 7)
    assert [placement.position for placement in first.placements] == [71] and not second.placements
    assert second.tokens[:2] == [0, 0]


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_vectors_of_a_token_make_the_picture_that_token_makes(sd1):
    (chunk,) = chunks_of("cat", "Original")
    table = sd1.text[0].model.embeddings.token_embedding.weight
    same = embedding("zzz", 1, CLIP_WIDTH)
    same.vectors[0].copy_(table[chunk.tokens].detach())
    assert torch.equal(context(sd1, "a zzz here", embeddings=(same,)), context(sd1, "a cat here"))


def test_each_encoder_of_sdxl_gets_its_own_vectors(sdxl):
    made = embedding("style", 2, CLIP_WIDTH, OPEN_CLIP_WIDTH)
    plain, styled = context(sdxl, "a style"), context(sdxl, "a style", embeddings=(made,))
    for part in (slice(None, CLIP_WIDTH), slice(CLIP_WIDTH, None)):
        assert not torch.allclose(plain[2:, part], styled[2:, part])
    assert torch.allclose(plain[:2], styled[:2], atol=1e-6), "what stands before is the same"


def test_vectors_are_gone_after_the_text(sd1):
    plain = context(sd1, "a style")
    context(sd1, "a style", embeddings=(embedding("style", 2, CLIP_WIDTH),))
    assert torch.equal(context(sd1, "a style"), plain)


def test_embedding_in_one_variant_of_an_edit_leaves_the_other_alone(sd1):
    made = (embedding("style", 2, CLIP_WIDTH),)
    track = encoded(sd1, "[a style:a cat:2]", embeddings=made, emphasis="No norm").positive[0]
    assert torch.allclose(track.at(0).context, context(sd1, "a style", embeddings=made), atol=1e-6)
    assert torch.allclose(track.at(4).context, context(sd1, "a cat"), atol=1e-6)


@pytest.mark.parametrize("widths", [(CLIP_WIDTH + 1,), (CLIP_WIDTH, OPEN_CLIP_WIDTH)], ids=["width", "family"])
def test_embedding_that_does_not_fit_stays_words(sd1, widths):
    assert torch.equal(context(sd1, "style", embeddings=(embedding("style", 2, *widths),)), context(sd1, "style"))


def test_h7_another_embedding_of_the_same_name_is_encoded_anew(sd1):
    encoder = PromptEncoder()
    first = context(sd1, "style", embeddings=(embedding("style", 1, CLIP_WIDTH),), encoder=encoder)
    other = context(sd1, "style", embeddings=(embedding("longer", 1, CLIP_WIDTH).named("style"),), encoder=encoder)
    again = context(sd1, "style", embeddings=(embedding("style", 1, CLIP_WIDTH),), encoder=encoder)
    assert not torch.equal(first, other)
    assert again.data_ptr() == first.data_ptr(), "the content counts, not the object"
