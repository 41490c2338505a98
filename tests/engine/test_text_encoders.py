"""How each family reads its text encoders: which hidden state, which padding, what SDXL is told beside the text."""

from __future__ import annotations

import math

import pytest
import torch

from gpuworker.contract import Settings
from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.prompts.encoder import PromptEncoder
from gpuworker.engine.prompts.tokens import chunks_of
from tests.engine.texts import (
    CLIP_WIDTH,
    LAYERS,
    OPEN_CLIP_WIDTH,
    PROJECTION,
    SIZE_WIDTH,
    context,
    encoded,
    text_checkpoint,
)

SIZES = {"width": 640, "height": 512}


@pytest.fixture(scope="module")
def sd2():
    return text_checkpoint("sd2")


@pytest.fixture(scope="module")
def sdxl():
    return text_checkpoint("sdxl")


@pytest.fixture(scope="module")
def refiner():
    return text_checkpoint("sdxl-refiner")


def framed(text):
    (chunk,) = chunks_of(text, "Original")
    return chunk.framed_tokens


def padded_with_zeros(text):
    tokens = framed(text)
    end = tokens.index(49407)
    return torch.tensor([tokens[: end + 1] + [0] * (76 - end)])


def run(tower, tokens):
    body = getattr(tower.model, "text_model", tower.model)
    with torch.no_grad():
        return body, body(input_ids=tokens, output_hidden_states=True)


def sines(number):
    half = SIZE_WIDTH // 2
    angles = [number * math.exp(-math.log(10000) * index / half) for index in range(half)]
    return [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]


def told(*numbers):
    return torch.tensor([value for number in numbers for value in sines(number)])


def test_sd2_reads_the_normed_penultimate_state_of_zero_padded_tokens(sd2):
    body, output = run(sd2.text[0], padded_with_zeros("a cat"))
    expected = body.final_layer_norm(output.hidden_states[-2])[0]
    assert torch.allclose(context(sd2, "a cat"), expected, atol=1e-6)


def test_clip_skip_says_nothing_to_sd2(sd2):
    encoder = PromptEncoder()
    first = context(sd2, "a (cat:1.2)", encoder=encoder)
    assert torch.equal(context(sd2, "a (cat:1.2)", clip_skip=LAYERS + 5, encoder=encoder), first)
    assert len(encoder.cache) == 2


def test_sd2_has_no_vector(sd2):
    assert encoded(sd2, "a").positive[0].at(0).vector is None


def test_sdxl_reads_both_penultimate_states_side_by_side(sdxl):
    _, clip = run(sdxl.text[0], torch.tensor([framed("a cat")]))
    _, open_clip = run(sdxl.text[1], padded_with_zeros("a cat"))
    found = context(sdxl, "a cat")
    assert found.shape == (77, CLIP_WIDTH + OPEN_CLIP_WIDTH)
    assert torch.allclose(found[:, :CLIP_WIDTH], clip.hidden_states[-2][0], atol=1e-6)
    assert torch.allclose(found[:, CLIP_WIDTH:], open_clip.hidden_states[-2][0], atol=1e-6)


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_counts_for_the_first_encoder_of_sdxl_where_it_is_asked_for(sdxl, clip_skip):
    _, clip = run(sdxl.text[0], torch.tensor([framed("a cat")]))
    plain = context(sdxl, "a cat", clip_skip=clip_skip)
    skipped = context(sdxl, "a cat", clip_skip=clip_skip, settings=Settings(sdxl_clip_l_skip=True))
    assert torch.equal(plain, context(sdxl, "a cat"))
    assert torch.equal(skipped[:, CLIP_WIDTH:], plain[:, CLIP_WIDTH:])
    assert torch.allclose(skipped[:, :CLIP_WIDTH], clip.hidden_states[-clip_skip][0], atol=1e-6)


def test_clip_skip_beyond_the_first_encoder_of_sdxl_is_refused_where_it_counts(sdxl):
    assert len(context(sdxl, "a", clip_skip=LAYERS + 2)) == 77
    with pytest.raises(InvalidSpecError, match="clip_skip"):
        context(sdxl, "a", clip_skip=LAYERS + 2, settings=Settings(sdxl_clip_l_skip=True))


def test_vector_of_sdxl_is_the_pooled_text_and_three_pairs_of_sizes(sdxl):
    body, output = run(sdxl.text[1], padded_with_zeros("a cat"))
    end = framed("a cat").index(49407)
    pooled = sdxl.text[1].model.text_projection(output.last_hidden_state[0, end])
    settings = Settings(sdxl_crop_top=16, sdxl_crop_left=48)
    vector = encoded(sdxl, "a cat", settings=settings, **SIZES).positive[0].at(0).vector
    assert vector.shape == (PROJECTION + 6 * SIZE_WIDTH,)
    assert torch.allclose(vector[:PROJECTION], pooled, atol=1e-6)
    assert torch.allclose(vector[PROJECTION:], told(512, 640, 16, 48, 512, 640), atol=1e-5)


def test_vector_of_the_refiner_ends_with_the_score(refiner):
    made = encoded(refiner, "a cat", "dog", settings=Settings(sdxl_refiner_low_aesthetic_score=4.0), **SIZES)
    positive, negative = made.positive[0].at(0), made.negative.at(0)
    assert positive.context.shape == (77, OPEN_CLIP_WIDTH)
    assert torch.allclose(positive.vector[PROJECTION:], told(512, 640, 0, 0, 6.0), atol=1e-5)
    assert torch.allclose(negative.vector[PROJECTION:], told(512, 640, 0, 0, 4.0), atol=1e-5)


@pytest.mark.parametrize("family", ["sdxl", "sdxl-refiner"])
def test_empty_negative_prompt_is_all_zero_text_for_sdxl(family):
    made = encoded(text_checkpoint(family), "", "", **SIZES)
    negative = made.negative.at(0)
    assert not negative.context.any() and not negative.vector[:PROJECTION].any()
    assert negative.vector[PROJECTION:].any()
    assert made.positive[0].at(0).context.any(), "an empty prompt is encoded"


def test_blank_negative_prompt_is_encoded_as_an_empty_text(sdxl):
    made = encoded(sdxl, "", " ", **SIZES)
    assert torch.equal(made.negative.at(0).context, made.positive[0].at(0).context)


def test_empty_negative_prompt_is_encoded_for_sd2(sd2):
    made = encoded(sd2, "", "")
    assert torch.equal(made.negative.at(0).context, made.positive[0].at(0).context)


def test_zeroed_negative_prompt_is_padded_with_encoded_empty_chunks(sdxl):
    made = encoded(sdxl, "b " * 80, "", settings=Settings(pad_cond_uncond=True), **SIZES)
    negative = made.negative.at(0).context
    assert not negative[:77].any()
    assert torch.equal(negative[77:], context(sdxl, ""))


def test_pooled_text_is_that_of_the_first_chunk(sdxl):
    first = encoded(sdxl, "a cat").positive[0].at(0).vector
    both = encoded(sdxl, "a cat BREAK a dog").positive[0].at(0).vector
    assert torch.allclose(first, both, atol=1e-6)


def test_emphasis_keeps_each_encoders_own_mean_and_leaves_the_pooled_text(sdxl):
    plain, loud = (encoded(sdxl, text).positive[0].at(0) for text in ("a cat", "a (cat:1.7)"))
    for part in (slice(None, CLIP_WIDTH), slice(CLIP_WIDTH, None)):
        assert not torch.allclose(plain.context[:, part], loud.context[:, part])
        assert loud.context[:, part].mean().item() == pytest.approx(plain.context[:, part].mean().item(), abs=1e-5)
    assert torch.allclose(plain.vector, loud.vector, atol=1e-6)


def test_variants_of_an_edit_are_scaled_by_one_mean_over_all_of_them(sd2):
    plain = [context(sd2, text) for text in ("a", "b")]
    weighted = [context(sd2, text, emphasis="No norm") for text in ("a", "(b:1.9)")]
    scale = torch.stack(plain).mean() / torch.stack(weighted).mean()
    track = encoded(sd2, "[a:(b:1.9):3]").positive[0]
    assert torch.allclose(track.at(0).context, weighted[0] * scale, atol=1e-5)
    assert torch.allclose(track.at(4).context, weighted[1] * scale, atol=1e-5)


def test_text_that_comes_twice_in_an_alternation_counts_twice_in_the_mean(sd2):
    plain = [context(sd2, text) for text in ("a", "b", "a")]
    weighted = [context(sd2, text, emphasis="No norm") for text in ("a", "(b:1.9)", "a")]
    scale = torch.stack(plain).mean() / torch.stack(weighted).mean()
    track = encoded(sd2, "[a|(b:1.9)]", steps=3).positive[0]
    assert torch.allclose(track.at(0).context, weighted[0] * scale, atol=1e-5)


def test_h7_vectors_are_made_per_request_from_one_encoding(sdxl):
    encoder = PromptEncoder()
    small, large = (
        encoded(sdxl, "a cat", encoder=encoder, width=width, height=64).positive[0].at(0) for width in (64, 128)
    )
    assert len(encoder.cache) == 2
    assert small.context.data_ptr() == large.context.data_ptr()
    assert not torch.equal(small.vector, large.vector)
