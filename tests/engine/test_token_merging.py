"""Token merging: which tokens share a place, and that nothing of it stays behind."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from gpuworker.engine.models.token_merging import matched, token_merging


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


@torch.inference_mode()
def predicted(unet: UNet2DConditionModel, ratio: float, *, size: tuple[int, int] = (8, 8)) -> torch.Tensor:
    torch.manual_seed(1)
    latents, context = torch.randn(2, 4, *size), torch.randn(2, 5, 8)
    with token_merging(unet, ratio):
        return unet(latents, 500, context, return_dict=False)[0]


def test_ratio_of_zero_changes_no_bit(unet):
    assert torch.equal(predicted(unet, 0.0), predicted(unet, 0.0))
    assert not torch.equal(predicted(unet, 0.0), predicted(unet, 0.5))


def test_nothing_of_it_stays_in_the_network(unet):
    before = predicted(unet, 0.0)
    predicted(unet, 0.5)
    assert torch.equal(predicted(unet, 0.0), before)


def test_same_request_gives_the_same_numbers_twice(unet):
    assert torch.equal(predicted(unet, 0.5), predicted(unet, 0.5))


def test_odd_sides_keep_what_is_left_of_a_window(unet):
    assert predicted(unet, 0.5, size=(6, 10)).shape == (2, 4, 6, 10)


def test_only_attention_at_the_latents_resolution_sees_fewer_tokens(unet):
    seen: dict[int, set[int]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, inputs: seen.setdefault(inputs[0].shape[1], set()).add(1))
        for name, module in unet.named_modules()
        if name.endswith("attn1.to_q")
    ]
    predicted(unet, 0.5)
    for handle in handles:
        handle.remove()
    assert seen.keys() == {32, 16}


def test_most_alike_tokens_go_first_and_come_back_as_one():
    tokens = torch.eye(4).repeat_interleave(4, dim=0).view(1, 4, 4, 4).transpose(1, 2).reshape(1, 16, 4)
    tokens = tokens + torch.linspace(0, 0.01, 16).view(1, 16, 1)
    matches = matched(tokens, 4, 4, 4)
    merged = matches.merged(tokens)
    back = matches.taken_apart(merged)
    assert merged.shape == (1, 12, 4)
    assert back.shape == tokens.shape
    assert torch.allclose(back, tokens, atol=0.02)
    assert (back != tokens).any(dim=-1).sum() >= 4


def test_rows_are_merged_each_by_itself():
    torch.manual_seed(2)
    tokens = torch.randn(2, 16, 4)
    both, alone = matched(tokens, 4, 4, 6).merged(tokens), matched(tokens[1:], 4, 4, 6).merged(tokens[1:])
    assert torch.equal(both[1:], alone)
