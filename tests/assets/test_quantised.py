"""Weights that are not the numbers they would be taken for are refused where they come in, with the tensor that shows it."""

from __future__ import annotations

import pytest

from assets.models import Asset
from gpuworker.contract.quantised import quantised_tensor
from tests.assets.test_intake import stored, take_in
from tests.weights import SD1_KEYS, framed

pytestmark = pytest.mark.django_db
WEIGHT = "model.diffusion_model.time_embed.0.weight"
BYTES = {"F16": 2, "I8": 1, "U8": 1, "I32": 4, "I64": 8, "F8_E4M3": 1, "F32": 4}


def a_file(*, types: dict[str, str], more: dict[str, tuple[str, list[int]]]) -> bytes:
    """The usual checkpoint with other types of some tensors, and some tensors more."""
    header, offset = {}, 0
    tensors = {name: (types.get(name, "F16"), shape) for name, shape in SD1_KEYS.items()} | more
    for name, (kind, shape) in tensors.items():
        size = BYTES[kind]
        for side in shape:
            size *= side
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    return framed(header, bytes(offset))


QUANTISED = {
    "bitsandbytes": ({WEIGHT: "U8"}, {f"{WEIGHT}.absmax": ("F32", [4]), f"{WEIGHT}.quant_map": ("F32", [16])}),
    "nf4's state": ({}, {f"{WEIGHT}.quant_state.bitsandbytes__nf4": ("U8", [64])}),
    "integers alone": ({WEIGHT: "I8"}, {}),
    "GPTQ": ({}, {"model.diffusion_model.time_embed.0.qweight": ("I32", [4, 4])}),
    "scaled fp8": ({WEIGHT: "F8_E4M3"}, {"model.diffusion_model.scaled_fp8": ("F8_E4M3", [2])}),
    "scales per layer": ({WEIGHT: "F8_E4M3"}, {"model.diffusion_model.time_embed.0.scale_weight": ("F32", [1])}),
}
PLAIN = {
    "fp8": ({WEIGHT: "F8_E4M3"}, {}),
    "positions and counters": (
        {},
        {
            "cond_stage_model.transformer.text_model.embeddings.position_ids": ("I64", [1, 77]),
            "model_ema.num_updates": ("I32", []),
        },
    ),
    "scales that are weights": ({}, {"model.diffusion_model.norm.scale": ("F16", [4]), "logit_scale": ("F16", [])}),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_are_quarantined_with_the_reason_and_leave_no_file(name, tmp_path):
    types, more = QUANTISED[name]
    asset = take_in(a_file(types=types, more=more))
    assert asset.state == "quarantined" and "The weights are quantised" in asset.reason and stored(tmp_path) == []


@pytest.mark.parametrize("name", PLAIN)
def test_plain_numbers_are_taken_in(name):
    types, more = PLAIN[name]
    assert take_in(a_file(types=types, more=more)).state == "approved"


def test_the_reason_names_the_tensor_and_its_type():
    take_in(a_file(types={WEIGHT: "I8"}, more={}))
    assert f"{WEIGHT} (I8)" in Asset.objects.get().reason


def test_a_file_of_floats_shows_nothing():
    assert quantised_tensor({"a.weight": (4, 4), "a.bias": (4,)}, {"a.weight": "BF16", "a.bias": "F32"}) is None
