"""The exported file is a whole SD 1.x checkpoint that the product's own loader reads back, tensor for tensor."""

from __future__ import annotations

import pytest
import torch

from gpuworker.engine.models.loader import load_checkpoint
from miniature.export import save_checkpoint
from miniature.train import new_text_encoder, new_unet, new_vae

LATENT_STD = 1.7


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(3)
    return new_unet(), new_vae(), new_text_encoder()


@pytest.fixture(scope="module")
def path(networks, tmp_path_factory):
    unet, vae, text_encoder = networks
    path = tmp_path_factory.mktemp("export") / "mini.safetensors"
    save_checkpoint(path, unet=unet, vae=vae, text_encoder=text_encoder, latent_std=LATENT_STD)
    return path


@pytest.fixture(scope="module")
def loaded(path):
    return load_checkpoint(path, config_path=None, device=torch.device("cpu"), dtype=torch.float32)


def test_the_denoiser_and_the_text_encoder_come_back_as_they_were(networks, loaded):
    unet, _, text_encoder = networks
    for before, after in ((unet, loaded.unet), (text_encoder, loaded.text[0].model)):
        expected = before.state_dict()
        for name, tensor in after.state_dict().items():
            if name in expected:
                assert torch.equal(tensor, expected[name].half().float()), name
        assert set(expected) <= set(after.state_dict())


@torch.no_grad()
def test_the_vae_gives_latents_of_unit_variance_and_the_same_picture(networks, loaded):
    _, vae, _ = networks
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    before = vae.quant_conv(vae.encoder(picture))[:, :4]
    after = loaded.vae.encode(picture).latent_dist.mode() * 0.18215
    assert torch.allclose(after, before / LATENT_STD, atol=2e-2)
    assert torch.allclose(loaded.vae.decode(after / 0.18215).sample, vae.decode(before).sample, atol=2e-2)


def test_the_file_has_the_original_key_layout_and_at_most_16_megabytes(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        heads = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
    assert heads == {
        "model", "first_stage_model", "cond_stage_model", "betas", "alphas_cumprod", "alphas_cumprod_prev"
    }  # fmt: skip
    assert path.stat().st_size <= 16_000_000


def test_the_same_weights_give_the_same_bytes(networks, path, tmp_path):
    unet, vae, text_encoder = networks
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, unet=unet, vae=vae, text_encoder=text_encoder, latent_std=LATENT_STD)
    assert again.read_bytes() == path.read_bytes()
