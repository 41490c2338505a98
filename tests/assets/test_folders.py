"""Folders of diffusers become one file at their intake, and what the engine loads of it computes what theirs compute."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from django.core.management import CommandError, call_command
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from assets.folders import Directory, folder_merge
from assets.intake import asset_process, asset_receive
from assets.models import Asset
from assets.scanning import UnsafeFileError
from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.flow import load_flow
from gpuworker.engine.models.loader import load_checkpoint
from tests.engine.flow_models import family_of, pipeline

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
WIDTH, SIZES = 16, 8
FAMILIES = ("sd1", "sd2", "sdxl", "sdxl-refiner")
NUMBERS = {"sdxl": 6, "sdxl-refiner": 5}
"""Of the size conditioning."""


@dataclass(frozen=True)
class Saved:
    family: str
    folder: Path
    parts: dict[str, Any]
    """Subfolder → the network that was saved there."""


def unet_of(family: str) -> UNet2DConditionModel:
    config: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 2 * WIDTH if family == "sdxl" else WIDTH,
        "attention_head_dim": (2, 4),
        "use_linear_projection": family != "sd1",
    }
    if family in NUMBERS:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": SIZES,
            "projection_class_embeddings_input_dim": WIDTH + NUMBERS[family] * SIZES,
            "transformer_layers_per_block": (1, 1),
        }
    return UNet2DConditionModel(**config)


def text_of(activation: str, kind: Any = CLIPTextModel) -> Any:
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=WIDTH, projection_dim=WIDTH, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=4, hidden_act=activation,
    )  # fmt: skip
    return kind(config)


def parts_of(family: str) -> dict[str, Any]:
    torch.manual_seed(0)
    parts: dict[str, Any] = {
        "unet": unet_of(family),
        "vae": AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            scaling_factor=0.2,
        ),
    }
    if family != "sdxl-refiner":
        parts["text_encoder"] = text_of("gelu" if family == "sd2" else "quick_gelu")
    if family in NUMBERS:
        parts["text_encoder_2"] = text_of("gelu", CLIPTextModelWithProjection)
    return {name: network.eval() for name, network in parts.items()}


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path) -> Saved:
    parts = parts_of(request.param)
    return Saved(request.param, save(parts, request.param, tmp_path / "painter"), parts)


def save(parts: dict[str, Any], family: str, folder: Path) -> Path:
    for name, network in parts.items():
        network.save_pretrained(folder / name)
    prediction = "v_prediction" if family == "sd2" else "epsilon"
    scheduler = EulerDiscreteScheduler(
        beta_start=0.001, beta_end=0.011, beta_schedule="scaled_linear", prediction_type=prediction
    )
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def merged(folder: Path) -> Path:
    target = folder.with_suffix(".safetensors")
    folder_merge(Directory(folder), target)
    return target


@torch.inference_mode()
def predicted(unet: Any, family: str, *, ours: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    latents, context, pooled = drawn(1, 4, 8, 8), drawn(1, 5, unet.config.cross_attention_dim), drawn(1, WIDTH)
    added: dict[str, Any] = {}
    if family in NUMBERS:
        numbers = torch.arange(NUMBERS[family])[None] * 10.0
        added["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": numbers}
        if ours:
            time = UNet2DConditionModel(**unet_of(family).config).add_time_proj(numbers.flatten()).view(1, -1)
            added = {"class_labels": torch.cat([pooled, time], dim=-1)}
    return unet(latents, 500, context, return_dict=False, **added)[0]


def assert_same_networks(checkpoint: Any, saved: Saved) -> None:
    theirs = predicted(saved.parts["unet"], saved.family, ours=False)
    assert torch.allclose(predicted(checkpoint.unet, saved.family, ours=True), theirs, atol=1e-5)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert torch.equal(checkpoint.vae.decode(latents).sample, saved.parts["vae"].decode(latents).sample)
        pairs = zip(
            checkpoint.text, [part for name, part in saved.parts.items() if name.startswith("text")], strict=True
        )
        for tower, theirs in pairs:
            assert_same_text(tower, theirs, lacks_last_layer=saved.family == "sd2")


def assert_same_text(tower: Any, theirs: Any, *, lacks_last_layer: bool) -> None:
    tokens = torch.tensor([[3, 1, 4, 49407]])
    ours, wanted = (network(tokens, output_hidden_states=True) for network in (tower.model, theirs))
    # The engine reads SD 2's last but one hidden state: what diffusers keeps as the last.
    place = -2 if lacks_last_layer else -1
    assert torch.allclose(ours.hidden_states[place], wanted.hidden_states[-1], atol=1e-6)
    if hasattr(wanted, "text_embeds"):
        assert torch.allclose(ours.text_embeds, wanted.text_embeds, atol=1e-6)


def test_folder_gives_the_networks_that_were_saved(saved):
    checkpoint = load_checkpoint(merged(saved.folder), **CPU)
    assert (checkpoint.family, checkpoint.latent_scale) == (saved.family, 0.2)
    assert checkpoint.prediction == ("v" if saved.family == "sd2" else "eps")
    assert checkpoint.size_embedding_width == (SIZES if saved.family in NUMBERS else None)
    assert checkpoint.alphas_cumprod[0] == pytest.approx(0.999)
    assert [tower.kind for tower in checkpoint.text] == {
        "sd1": ["clip"], "sd2": ["open_clip"], "sdxl": ["clip", "open_clip"], "sdxl-refiner": ["open_clip"],
    }[saved.family]  # fmt: skip
    assert_same_networks(checkpoint, saved)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of one model, to be spoilt."""
    parts = parts_of("sd1")
    return save(parts, "sd1", tmp_path / "painter")


def test_same_folder_gives_the_same_bytes(folder):
    assert merged(folder).read_bytes() == merged(folder).read_bytes()


def test_half_precision_variant_is_taken_where_there_is_no_other(folder):
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    plain = merged(folder).read_bytes()
    whole.rename(whole.with_suffix(".fp16.safetensors"))
    assert merged(folder).read_bytes() == plain


def test_shards_are_read_as_one(tmp_path):
    parts = parts_of("sdxl")
    folder = save(parts, "sdxl", tmp_path / "painter")
    shutil.rmtree(folder / "unet")
    parts["unet"].save_pretrained(folder / "unet", max_shard_size="100KB")
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    assert_same_networks(load_checkpoint(merged(folder), **CPU), Saved("sdxl", folder, parts))
    shards[0].unlink()
    with pytest.raises(UnsafeFileError, match="unet lacks 1 of its shards"):
        merged(folder)


def test_folder_with_pickles_alone_is_refused(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UnsafeFileError, match="vae has no weights as safetensors"):
        merged(folder)


def test_folder_that_is_no_model_is_refused(folder):
    (folder / "model_index.json").unlink()
    with pytest.raises(UnsafeFileError, match=r"no model_index\.json or config\.json"):
        merged(folder)


def test_damaged_part_is_named(folder):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UnsafeFileError, match=r"vae/diffusion_pytorch_model\.safetensors: The file is truncated"):
        merged(folder)


def test_configuration_that_is_none_is_named(folder):
    (folder / "unet" / "config.json").write_text("[]")
    with pytest.raises(UnsafeFileError, match=r"unet/config\.json is not a JSON map"):
        merged(folder)


def test_folder_with_another_noise_schedule_is_refused(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_schedule": "linear"}))
    with pytest.raises(CheckpointError, match="its noise schedule is linear"):
        load_checkpoint(merged(folder), **CPU)


# --- through the doors -----------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_folder_is_taken_in_by_the_command(folder):
    output = io.StringIO()
    call_command("import_asset", str(folder), kind="checkpoint", stdout=output)
    asset = Asset.objects.get(name="painter")
    assert output.getvalue() == f"painter {sha256(merged(folder).read_bytes()).hexdigest()} approved\n"
    assert (asset.family, asset.metadata) == ("sd1", {"input_channels": 4})


@pytest.mark.django_db
def test_folder_that_lacks_a_part_is_not_taken_in(folder):
    shutil.rmtree(folder / "vae")
    with pytest.raises(CommandError, match=r"lacks the VAE \(first_stage_model\.\*\)"):
        call_command("import_asset", str(folder), kind="checkpoint")


@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["sd3.5", "flux"])
def test_folder_of_flows_is_taken_in_and_loaded(kind, tmp_path):
    made = pipeline(kind)
    made.save_pretrained(tmp_path / "painter")
    call_command("import_asset", str(tmp_path / "painter"), kind="checkpoint")
    asset = Asset.objects.get(name="painter")
    assert (asset.family, asset.metadata) == (family_of(kind), {"input_channels": 16})
    model = load_flow(merged(tmp_path / "painter"), **CPU)
    saved, loaded = made.transformer.state_dict(), model.transformer.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())
    assert model.schedule["shift"] == 3.0


@pytest.mark.django_db
def test_folder_of_flows_without_text_encoders_is_refused(tmp_path):
    pipeline("flux").save_pretrained(tmp_path / "painter")
    shutil.rmtree(tmp_path / "painter" / "text_encoder_2")
    expected = r"It looks like Flux, but lacks the T5 text encoder \(text_encoder_2\.\*\)"
    with pytest.raises(CommandError, match=expected):
        call_command("import_asset", str(tmp_path / "painter"), kind="checkpoint")


@pytest.mark.django_db
@pytest.mark.parametrize("whole", [True, False], ids=["the folder", "its content"])
def test_zipped_folder_is_the_same_checkpoint(folder, whole):
    root, base = (folder.parent, folder.name) if whole else (folder, ".")
    archive = Path(shutil.make_archive(str(folder.parent / "packed"), "zip", root, base))
    asset = taken_in(archive)
    assert (asset.state, asset.family) == ("approved", "sd1")
    assert asset.sha256 == sha256(merged(folder).read_bytes()).hexdigest()
    assert asset.original_sha256 == sha256(archive.read_bytes()).hexdigest()


@pytest.mark.django_db
def test_zipped_folder_with_one_configuration_is_read_from_its_top(folder):
    for path in folder.glob("*/config.json"):
        if path.parent.name != "unet":
            path.unlink()
    archive = Path(shutil.make_archive(str(folder.parent / "packed"), "zip", folder))
    assert taken_in(archive).sha256 == sha256(merged(folder).read_bytes()).hexdigest()


@pytest.mark.django_db
def test_archive_made_to_fill_a_disk_is_refused(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(128 * 1024**2))
    asset = taken_in(Path(shutil.make_archive(str(folder.parent / "packed"), "zip", folder)))
    assert (asset.state, "unpacks to" in asset.reason) == ("quarantined", True)


@pytest.mark.django_db
def test_damaged_archive_is_refused(folder):
    archive = Path(shutil.make_archive(str(folder.parent / "packed"), "zip", folder))
    data = bytearray(archive.read_bytes())
    data[200_000:202_000] = bytes(2000)
    archive.write_bytes(data)
    asset = taken_in(archive)
    assert (asset.state, "zip archive is damaged" in asset.reason) == ("quarantined", True)


def taken_in(path: Path) -> Asset:
    with path.open("rb") as file:
        return asset_process(asset_receive(file=file, name=path.name, kind="checkpoint").pk)
