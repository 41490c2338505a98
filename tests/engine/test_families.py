"""What a file holds, told from the names and shapes of its tensors: families, what they lack, what they were made for."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest

from gpuworker.contract.families import recognise
from gpuworker.contract.layouts import original_names
from tests.engine.ldm import FULL_SIZE, TINY, UNet, checkpoint_shapes, unet_shapes
from tests.engine.recordings import REFERENCE, needs_recordings

LORA_LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SDXL_LAYER = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
DIFFUSERS_LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONTROL_LAYER = "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"

TEXT_LAYER = "lora_te_text_model_encoder_layers_0_mlp_fc2"
VAE_ENDS = {"decoder.conv_out.weight": (3, 128, 3, 3), "encoder.conv_in.weight": (128, 3, 3, 3)}


@pytest.mark.parametrize(
    ("family", "base", "shapes"),
    [
        ("sd2", None, {"model.diffusion_model.out.2.weight": (4, 4), "cond_stage_model.model.ln_final.weight": (1024,)}),
        ("sdxl", None, {"model.diffusion_model.out.2.weight": (4, 4), "conditioner.embedders.1.model.ln_final.weight": (4,)}),
        ("sd3", None, {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4, 4)}),
        ("sd3", None, {"transformer_blocks.0.norm1_context.linear.weight": (4, 4), "context_embedder.weight": (4, 4)}),
        ("flux", None, {"transformer.single_transformer_blocks.0.norm.linear.weight": (4, 4)}),
        ("flux", None, {"double_blocks.0.img_attn.qkv.weight": (4, 4)}),
        ("lora", "sd1", {f"{LORA_LAYER}.lora_down.weight": (4, 768), f"{LORA_LAYER}.lora_up.weight": (320, 4)}),
        ("lora", "sd2", {f"{LORA_LAYER}.lora_down.weight": (4, 1024), f"{LORA_LAYER}.lora_up.weight": (320, 4)}),
        ("lora", "sdxl", {f"{SDXL_LAYER}.lora_down.weight": (4, 2048), f"{SDXL_LAYER}.lora_up.weight": (640, 4)}),
        ("lora", "sd1", {f"{DIFFUSERS_LAYER}.lora_A.weight": (4, 768), f"{DIFFUSERS_LAYER}.lora_B.weight": (320, 4)}),
        ("lora", "sd1", {f"{LORA_LAYER}.hada_w1_a": (320, 4), f"{LORA_LAYER}.hada_w1_b": (4, 768)}),
        ("lora", "sdxl", {f"{SDXL_LAYER}.lokr_w1": (8, 8), f"{SDXL_LAYER}.lokr_w2_b": (4, 256)}),
        ("lora", "sd1", {f"{LORA_LAYER}.diff": (320, 768)}),
        ("lora", None, {f"{LORA_LAYER}.oft_blocks": (4, 80, 80), f"{LORA_LAYER}.alpha": ()}),
        ("lora", None, {f"{TEXT_LAYER}.weight": (3072,), f"{TEXT_LAYER}.on_input": ()}),
        ("lora", "sdxl", {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280)}),
        ("lora", "flux", {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)}),
        ("lora", "sd3", {"transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight": (4, 1536)}),
        ("vae", None, {**VAE_ENDS, "decoder.conv_in.weight": (512, 4, 3, 3), "post_quant_conv.weight": (4, 4, 1, 1)}),
        ("vae", None, {**VAE_ENDS, "decoder.conv_in.weight": (512, 16, 3, 3)}),
        ("embedding", "sd1", {"emb_params": (4, 768)}),
        ("embedding", "sd2", {"string_to_param.*": (4, 1024)}),
        ("embedding", "sd1", {"<concept>": (768,)}),
        ("embedding", "sdxl", {"clip_l": (4, 768), "clip_g": (4, 1280)}),
        ("controlnet", "sd1", {CONTROL_LAYER: (320, 768), "control_model.zero_convs.0.0.weight": (320, 320, 1, 1)}),
        ("controlnet", "sdxl", {"controlnet_mid_block.weight": (4, 4, 1, 1), "add_embedding.linear_1.weight": (4, 4)}),
        ("controlnet", "sd1", {"image_proj.norm.weight": (768,), "ip_adapter.1.to_k_ip.weight": (320, 768)}),
        ("hypernetwork", "sd1", {"768.0.linear.0.weight": (768, 768), "320.1.linear.0.weight": (320, 320)}),
        ("upscaler", None, {"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv1.weight": (32, 64, 3, 3)}),
        ("upscaler", None, {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)}),
        ("upscaler", None, {"params_ema.RRDB_trunk.0.RDB1.conv1.weight": (32, 64, 3, 3)}),
        ("upscaler", None, {"params.body.0.weight": (64, 3, 3, 3), "params.body.1.weight": (64,)}),
        ("upscaler", None, {"conv_first.weight": (180, 3, 3, 3), "layers.0.residual_group.blocks.0.norm1.weight": (180,)}),
        (None, None, {"classifier.weight": (4, 4)}),
        (None, None, {}),
    ],
    ids=str,
)  # fmt: skip
def test_family_and_base_are_told_from_tensors(family, base, shapes):
    recognition = recognise(shapes)
    assert (recognition.family, recognition.base) == (family, base)
    assert recognition.reason.endswith(".")


@pytest.mark.parametrize("checkpoints", [TINY, FULL_SIZE], ids=["tiny", "full size"])
@pytest.mark.parametrize("family", TINY)
def test_complete_checkpoint_is_recognised(family, checkpoints):
    recognition = recognise(checkpoints[family].shapes())
    assert (recognition.family, recognition.is_complete, recognition.input_channels) == (family, True, 4)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_denoiser_alone_is_told_by_the_width_of_its_text(family):
    shapes = {f"model.diffusion_model.{name}": shape for name, shape in unet_shapes(FULL_SIZE[family].unet).items()}
    recognition = recognise(shapes)
    assert (recognition.family, recognition.is_complete) == (family, False)
    assert "lacks the VAE (first_stage_model.*), a text encoder" in recognition.reason


def test_turbo_of_stable_diffusion_2_is_no_refiner():
    shapes = {
        name.replace("cond_stage_model.", "conditioner.embedders.0."): shape
        for name, shape in FULL_SIZE["sd2"].shapes().items()
    }
    assert (recognise(shapes).family, recognise(shapes).missing) == ("sd2", ())
    assert set(original_names(shapes).values()) == FULL_SIZE["sd2"].shapes().keys()


def test_single_tensor_that_is_missing_is_named():
    shapes = checkpoint_shapes()
    del shapes["model.diffusion_model.time_embed.0.weight"]
    recognition = recognise(shapes)
    assert recognition.missing == ("model.diffusion_model.time_embed.0.weight",)
    assert recognition.reason == (
        "It looks like Stable Diffusion 1, but lacks model.diffusion_model.time_embed.0.weight."
    )


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("embedder.model.ln_final.weight", "unCLIP"),
        ("depth_model.model.pretrained.act_postprocess3.0.project.0.bias", "depth-to-image"),
        ("cond_stage_model.roberta.embeddings.word_embeddings.weight", "AltDiffusion"),
    ],
)
def test_checkpoint_that_no_request_can_feed_is_named(name, looks):
    recognition = recognise({**checkpoint_shapes(), name: (1024,)})
    assert recognition.family is None
    assert looks in recognition.reason


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("params_ema.stylegan_decoder.constant_input.weight", "GFPGAN"),
        ("quantize.embedding.weight", "CodeFormer"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5"),
        ("text_model.encoder.layers.0.self_attn.q_proj.weight", "a text encoder alone"),
        ("down_blocks.0.motion_modules.0.norm.weight", "AnimateDiff"),
        ("blocks.0.attn.weight", "transformer of another family"),
    ],
)
def test_file_of_no_use_here_is_called_by_its_name(name, looks):
    recognition = recognise({name: (4, 4)})
    assert recognition.family is None
    assert looks in recognition.reason
    assert name in recognition.reason


@pytest.mark.parametrize("inputs", [8, 9])
def test_input_channels_are_told(inputs):
    shapes = unet_shapes(UNet(inputs=inputs))
    assert (
        recognise({f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}).input_channels == inputs
    )


def test_recognising_a_file_needs_no_torch():
    script = "import sys, gpuworker.contract.families, gpuworker.contract.samplers; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


# --- the recorded instances' own files -------------------------------------------------------------------------------

RECORDED = {
    "tiny-sd15/vae": "vae",
    "tiny-sd15/lora": "lora",
    "tiny-sd15/embeddings": "embedding",
    "tiny-networks": "lora",
}


def shapes_in(path):
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


@needs_recordings
@pytest.mark.parametrize("folder", RECORDED)
def test_recorded_files_are_recognised(folder):
    files = sorted((REFERENCE / folder).glob("*.safetensors"))
    assert files
    assert {path.name: recognise(shapes_in(path)).family for path in files} == {
        path.name: RECORDED[folder] for path in files
    }


@needs_recordings
@pytest.mark.parametrize("name", ["tiny-control-canny", "tiny-control-tile"])
def test_recorded_control_networks_are_recognised(name):
    assert recognise(shapes_in(REFERENCE / "tiny-controlnet" / f"{name}.safetensors")).family == "controlnet"


@needs_recordings
def test_recorded_files_of_sdxl_are_for_sdxl():
    for name in ("tinyxllora", "zzxl"):
        assert recognise(shapes_in(REFERENCE / "tiny-sdxl" / f"{name}.safetensors")).base == "sdxl"
