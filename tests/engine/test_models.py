"""From files to networks: what is inferred, what is refused, what is kept."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import load_file

from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.beside import beside_of_yaml
from gpuworker.engine.models.cache import ByteCache
from gpuworker.engine.models.families import architecture_of
from gpuworker.engine.models.loader import load_checkpoint
from gpuworker.engine.models.tensor_files import read_safetensors, read_separately
from tests.engine.ldm import checkpoint_shapes, write_checkpoint

LDM_YAML = """
model:
  params:
    linear_start: 0.001
    scale_factor: 0.2
    unet_config: {params: {num_heads: 2}}
    cond_stage_config: {params: {version: tiny}}
"""


def load(path):
    return load_checkpoint(path, device=torch.device("cpu"), dtype=torch.float32)


def test_miniature_is_inferred_from_its_shapes():
    plan = architecture_of(checkpoint_shapes(unet=(48, 96), vae=(24, 32, 48, 48), width=48, layers=4, mlp=192))
    assert plan.unet["block_out_channels"] == [48, 96]
    assert plan.unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 2
    unet = {
        key: plan.unet[key]
        for key in ("layers_per_block", "cross_attention_dim", "attention_head_dim", "norm_num_groups")
    }
    assert unet == {"layers_per_block": 1, "cross_attention_dim": 48, "attention_head_dim": 8, "norm_num_groups": 16}
    assert (plan.vae["block_out_channels"], plan.vae["layers_per_block"]) == ([24, 32, 48, 48], 1)
    assert (plan.vae["norm_num_groups"], plan.latent_scale) == (8, 0.18215)
    text = plan.text[0].config
    assert (text["num_attention_heads"], text["intermediate_size"]) == (1, 192)


def test_real_checkpoint_gets_32_groups_and_64_channels_per_text_head():
    plan = architecture_of(checkpoint_shapes(unet=(320, 640, 1280), vae=(128, 256, 512, 512), width=768))
    assert (plan.unet["norm_num_groups"], plan.vae["norm_num_groups"]) == (32, 32)
    assert plan.text[0].config["num_attention_heads"] == 12


def test_yaml_tells_what_shapes_cannot(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(LDM_YAML)
    plan = architecture_of(checkpoint_shapes(), beside_of_yaml(path))
    assert (plan.unet["attention_head_dim"], plan.latent_scale, plan.beta_range) == (2, 0.2, (0.001, 0.012))
    assert plan.text[0].config["num_attention_heads"] == 2


def test_text_encoder_config_beside_the_yaml_wins(tmp_path):
    (tmp_path / "model.yaml").write_text(LDM_YAML)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text('{"num_attention_heads": 4}')
    plan = architecture_of(checkpoint_shapes(), beside_of_yaml(tmp_path / "model.yaml"))
    assert plan.text[0].config["num_attention_heads"] == 4


def test_yaml_that_is_none_is_refused(tmp_path):
    (tmp_path / "model.yaml").write_text("[1, 2")
    with pytest.raises(CheckpointError, match=r"model\.yaml is not an LDM-style YAML"):
        beside_of_yaml(tmp_path / "model.yaml")


def test_weights_arrive_where_they_belong(tmp_path):
    path = write_checkpoint(tmp_path / "weights.safetensors")
    stored, checkpoint = load_file(path), load(path)
    assert torch.equal(checkpoint.unet.conv_in.weight, stored["model.diffusion_model.input_blocks.0.0.weight"])
    assert torch.equal(checkpoint.vae.decoder.conv_out.weight, stored["first_stage_model.decoder.conv_out.weight"])
    assert checkpoint.size_bytes == sum(tensor.nbytes for tensor in stored.values())


def test_noise_schedule_of_the_file_wins(tmp_path):
    shapes = checkpoint_shapes()
    assert load(write_checkpoint(tmp_path / "a.safetensors", shapes)).alphas_cumprod[-1] == pytest.approx(
        0.00466, abs=1e-5
    )
    with_own = write_checkpoint(tmp_path / "b.safetensors", {**shapes, "alphas_cumprod": (1000,)})
    assert load(with_own).alphas_cumprod.abs().sum() == 0


def test_missing_tensor_is_named(tmp_path):
    shapes = checkpoint_shapes()
    lost = "model.diffusion_model.middle_block.1.proj_in.bias"
    del shapes[lost]
    with pytest.raises(CheckpointError, match=r"UNet of the checkpoint lacks middle_block\.1\.proj_in\.bias"):
        load(write_checkpoint(tmp_path / "weights.safetensors", shapes))


def test_missing_part_is_named():
    shapes = {name: shape for name, shape in checkpoint_shapes().items() if not name.startswith("first_stage_model.")}
    with pytest.raises(CheckpointError) as refusal:
        architecture_of(shapes)
    assert refusal.value.family == "sd1"
    assert "first_stage_model.decoder.conv_in.weight" in refusal.value.missing
    assert "lacks the VAE (first_stage_model.*)" in str(refusal.value)


def test_other_family_is_named(tmp_path):
    path = write_checkpoint(tmp_path / "lora.safetensors", {"lora_unet_mid_block_attn1_to_q.lora_down.weight": (4, 8)})
    with pytest.raises(CheckpointError, match="looks like a LoRA") as refusal:
        load(path)
    assert (refusal.value.family, refusal.value.retryable) == ("lora", False)


@pytest.mark.parametrize("channels", [8, 9])
def test_checkpoints_that_see_a_picture_keep_their_channels(channels):
    shapes = {**checkpoint_shapes(), "model.diffusion_model.input_blocks.0.0.weight": (32, channels, 3, 3)}
    assert architecture_of(shapes).unet["in_channels"] == channels


def test_checkpoint_that_sees_depth_is_refused():
    shapes = {**checkpoint_shapes(), "model.diffusion_model.input_blocks.0.0.weight": (32, 5, 3, 3)}
    with pytest.raises(CheckpointError, match="takes 5 channels"):
        architecture_of(shapes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-100],
        lambda whole: whole[:4],
        lambda whole: b"<html>not a model</html>",
        lambda whole: struct.pack("<Q", 2**40) + whole[8:],
        lambda whole: struct.pack("<Q", 20) + json.dumps({"a": {"dtype": "F9"}}).encode().ljust(20),
    ],
    ids=["cut off", "header cut off", "another format", "header too long", "unknown type"],
)
def test_damaged_file_is_refused(tmp_path, damage):
    path = write_checkpoint(tmp_path / "weights.safetensors", {"a": (100, 2)})
    path.write_bytes(damage(path.read_bytes()))
    for read in (read_safetensors, read_separately):
        with pytest.raises(CheckpointError, match="not a complete safetensors file"):
            read(path)


def test_least_recently_used_value_goes_first():
    cache: ByteCache[bytes] = ByteCache(10, size_of=len)
    for key in ("a", "b", "a", "c"):
        cache.get_or_make(key, lambda: b"1234")
    assert ["a" in cache, "b" in cache, "c" in cache, cache.used_bytes] == [True, False, True, 8]


def test_value_larger_than_the_cache_is_still_usable():
    cache: ByteCache[bytes] = ByteCache(3, size_of=len)
    assert cache.get_or_make("a", lambda: b"1234") == b"1234"
    cache.make_room(4)
    assert (len(cache), cache.used_bytes) == (0, 0)
