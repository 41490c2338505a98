"""Small companions of the miniature checkpoint: a LoRA, an embedding, a VAE, a ControlNet and an upscaler.

``python -m miniature.companions`` makes all five from the shipped checkpoint and freshly drawn pictures, ``… lora upscaler`` only
those. Each is one safetensors file of at most 4 MB in the layout in which such files are published, beside the checkpoint.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from random import Random
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from safetensors.torch import save_file
from torch.func import functional_call
from tqdm import tqdm
from transformers import CLIPTokenizer

from gpuworker.engine.models.loader import Checkpoint, load_checkpoint
from gpuworker.engine.models.upscalers import RRDBNet
from miniature.export import Tensors, unet_name, vae_name
from miniature.scenes import Scene
from miniature.train import (
    CHECKPOINT,
    HIGH_NOISE_WEIGHT,
    ROOT,
    TOKENIZER_DIR,
    edge_loss,
    learning_share,
    noise_schedule,
    optimize,
    optimizers_of,
    picture_loss,
)

RANK, ALPHA = 4, 4.0
LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
EMBEDDING_NAME, EMBEDDING_VECTORS = "kilnharbour", 2
EMBEDDING_SCENE = Scene(ground="sea", sky="sunset")
CANNY_THRESHOLDS = (100, 200)
MOONLIGHT = np.array([0.35, 0.45, 0.8], dtype=np.float32)
"""What is left of red, green and blue in the LoRA's style."""


def base() -> Checkpoint:
    return load_checkpoint(CHECKPOINT, device=torch.device("cpu"), dtype=torch.float32)


def as_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) as float32 in -1…1, shape (n, 3, h, w)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def latents_of(checkpoint: Checkpoint, pictures: np.ndarray) -> torch.Tensor:
    encoded = [
        checkpoint.vae.encode(as_tensor(pictures[first : first + 64])).latent_dist.mode()
        for first in range(0, len(pictures), 64)
    ]
    return torch.cat(encoded) * checkpoint.latent_scale


class Captions:
    """Texts as token ids of one window."""

    def __init__(self) -> None:
        self._tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER_DIR)

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return self._tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids


def noise_loss(predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], latents: torch.Tensor) -> torch.Tensor:
    """The miniature's own objective: predict the noise, weighted towards high noise."""
    timesteps, noise = torch.randint(1000, (len(latents),)), torch.randn_like(latents)
    signal = noise_schedule()[timesteps].view(-1, 1, 1, 1)
    predicted = predict(signal.sqrt() * latents + (1 - signal).sqrt() * noise, timesteps)
    weights = (1 / signal).clamp(max=HIGH_NOISE_WEIGHT)
    return (weights * (predicted - noise).square()).mean() / weights.mean()


def trained(
    name: str, parameters: torch.nn.Module, steps: int, loss_of_step: Callable[[int], torch.Tensor], *, peak: float
) -> None:
    """Run one training loop with a bar; ends the parameters where the last step left them."""
    optimizers, losses = optimizers_of(parameters, peak=peak), []
    bar = tqdm(range(steps), desc=name, mininterval=5)
    for step in bar:
        loss = loss_of_step(step)
        optimize(optimizers, loss, share=learning_share(step, steps))
        losses.append(loss.item())
        if step % 50 == 49:
            bar.set_postfix_str(f"loss {sum(losses[-200:]) / len(losses[-200:]):.4f}")


def save(name: str, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    path = ROOT / f"{name}.safetensors"
    halves = {key: tensors[key].detach().half().contiguous() for key in sorted(tensors)}
    save_file(halves, path, metadata={"format": "pt", **(metadata or {})})
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


# --- a LoRA: everything by moonlight ---------------------------------------------------------------------------------


def by_moonlight(pictures: np.ndarray) -> np.ndarray:
    return (pictures * MOONLIGHT).astype(np.uint8)


class LowRank(torch.nn.Module):
    """Pairs of small matrices beside a network's layers."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self._base = dict(network.named_parameters())
        names = [name for name in self._base if name.endswith(tuple(f"{layer}.weight" for layer in LORA_LAYERS))]
        self._names = [name for name in names if "attentions" in name]
        shapes = {name: self._base[name].flatten(1).shape for name in self._names}
        self.down = torch.nn.ParameterList(torch.randn(RANK, shapes[name][1]) / RANK for name in self._names)
        self.up = torch.nn.ParameterList(torch.zeros(shapes[name][0], RANK) for name in self._names)

    def weights(self) -> Tensors:
        changed = {
            name: self._base[name] + (up @ down).view_as(self._base[name]) * (ALPHA / RANK)
            for name, up, down in zip(self._names, self.up, self.down, strict=True)
        }
        return {**self._base, **changed}

    def published(self, layers: int) -> Tensors:
        """In kohya's names, on the blocks of the original layout."""
        tensors: Tensors = {}
        for name, up, down in zip(self._names, self.up, self.down, strict=True):
            key = "lora_unet_" + unet_name(name, layers).removesuffix(".weight").replace(".", "_")
            kernel = (1, 1) if self._base[name].ndim == 4 else ()
            tensors[f"{key}.lora_up.weight"] = up.reshape(*up.shape, *kernel)
            tensors[f"{key}.lora_down.weight"] = down.reshape(*down.shape, *kernel)
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
        return tensors


def make_lora(steps: int) -> None:
    checkpoint, rng, captions = base(), Random(31), Captions()
    scenes = [Scene.random(rng) for _ in range(2400)]
    latents = latents_of(checkpoint, by_moonlight(np.stack([scene.draw(64, rng) for scene in scenes])))
    ids = captions([scene.caption(rng) for scene in scenes])
    pairs, text = LowRank(checkpoint.unet), checkpoint.text[0].model
    contexts = _encoded(text, ids)

    def loss(step: int) -> torch.Tensor:
        rows = torch.randint(len(latents), (32,))

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return functional_call(checkpoint.unet, pairs.weights(), (noisy, timesteps, contexts[rows])).sample

        return noise_loss(predict, latents[rows])

    trained("lora", pairs, steps, loss, peak=1.5e-3)
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_output_name": "miniature-moonlight",
        "ss_base_model_version": "sd_v1",
    }
    save("miniature-moonlight", pairs.published(checkpoint.unet.config.layers_per_block), metadata)


@torch.no_grad()
def _encoded(text_encoder: Any, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([text_encoder(part).last_hidden_state for part in ids.split(64)])


# --- a textual inversion embedding: a sunset over the sea ------------------------------------------------------------


def make_embedding(steps: int) -> None:
    checkpoint, rng, captions = base(), Random(32), Captions()
    latents = latents_of(checkpoint, np.stack([EMBEDDING_SCENE.draw(64, rng) for _ in range(200)]))
    text = checkpoint.text[0].model
    body = getattr(text, "text_model", text)
    table = body.embeddings.token_embedding
    template = captions(["! !"])
    vectors = torch.nn.Module()
    start = table(captions(["sea sunset"])[0, 1:3]).detach().clone()
    vectors.table = torch.nn.Parameter(start)

    def context() -> torch.Tensor:
        tokens = torch.cat([table(template[:, :1]), vectors.table[None], table(template[:, 3:])], dim=1)
        return _through(text, tokens)

    def loss(step: int) -> torch.Tensor:
        rows = torch.randint(len(latents), (16,))
        shared = context().expand(16, -1, -1)
        return noise_loss(lambda noisy, timesteps: checkpoint.unet(noisy, timesteps, shared).sample, latents[rows])

    trained("embedding", vectors, steps, loss, peak=1e-3)
    save(EMBEDDING_NAME, {"emb_params": vectors.table})


def _through(text_encoder: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The text encoder from token vectors on."""
    ids = torch.zeros(tokens.shape[:2], dtype=torch.long)
    body = getattr(text_encoder, "text_model", text_encoder)
    handle = body.embeddings.token_embedding.register_forward_hook(lambda module, given, output: tokens)
    try:
        # The ids only say how long the text is and where it ends.
        return text_encoder(ids).last_hidden_state
    finally:
        handle.remove()


# --- a VAE: the decoder with crisper edges ---------------------------------------------------------------------------


def make_vae(steps: int) -> None:
    checkpoint, rng = base(), Random(33)
    pictures = np.stack([Scene.random(rng).draw(64, rng) for _ in range(2400)])
    latents, wanted = latents_of(checkpoint, pictures) / checkpoint.latent_scale, as_tensor(pictures)
    decoder = torch.nn.ModuleList([checkpoint.vae.decoder, checkpoint.vae.post_quant_conv]).requires_grad_(True)

    def loss(step: int) -> torch.Tensor:
        rows = torch.randint(len(latents), (8,))
        # A quarter of the picture, with enough of its surroundings for the decoder's view.
        rebuilt = checkpoint.vae.decode(latents[rows]).sample
        return picture_loss(rebuilt, wanted[rows]) + edge_loss(rebuilt, wanted[rows])

    trained("vae", decoder, steps, loss, peak=2e-3)
    save("miniature-crisp-vae", published_vae(checkpoint))


def published_vae(checkpoint: Checkpoint) -> Tensors:
    """In the original names without a prefix."""
    levels = len(checkpoint.vae.config.block_out_channels)
    return {
        vae_name(name, levels=levels): tensor[:, :, None, None]
        if ".attentions." in name and tensor.ndim == 2
        else tensor
        for name, tensor in checkpoint.vae.state_dict().items()
    }


# --- a ControlNet: edges ---------------------------------------------------------------------------------------------


def edges(picture: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3): white where the picture has an edge."""
    return np.repeat(cv2.Canny(picture, *CANNY_THRESHOLDS)[..., None], 3, axis=2)


def make_controlnet(steps: int) -> None:
    checkpoint, rng, captions = base(), Random(34), Captions()
    scenes = [Scene.random(rng) for _ in range(6000)]
    pictures = np.stack([scene.draw(64, rng) for scene in scenes])
    latents = latents_of(checkpoint, pictures)
    maps = torch.from_numpy(np.stack([edges(picture) for picture in pictures])).permute(0, 3, 1, 2)
    # Half of the captions are empty, so that the edges alone have to tell the shape.
    texts = [scene.caption(rng) if rng.random() < 0.5 else "" for scene in scenes]
    contexts = _encoded(checkpoint.text[0].model, captions(texts))
    control = ControlNetModel.from_unet(checkpoint.unet).requires_grad_(True)

    def loss(step: int) -> torch.Tensor:
        rows = torch.randint(len(latents), (32,))

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            down, middle = control(noisy, timesteps, contexts[rows], maps[rows].float() / 255, return_dict=False)
            return checkpoint.unet(
                noisy,
                timesteps,
                contexts[rows],
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample

        return noise_loss(predict, latents[rows])

    trained("controlnet", control, steps, loss, peak=4e-3)
    save("miniature-canny", published_controlnet(control, checkpoint.unet.config.layers_per_block))


def published_controlnet(control: Any, layers: int) -> Tensors:
    """In the original layout (``control_model.…``)."""
    return {f"control_model.{_controlnet_name(name, layers)}": tensor for name, tensor in control.state_dict().items()}


def _controlnet_name(name: str, layers: int) -> str:
    first, _, rest = name.partition(".")
    match first:
        case "controlnet_cond_embedding":
            part, _, tail = rest.rpartition(".")
            places = {"conv_in": 0, "conv_out": 14}
            place = places[part] if part in places else 2 + 2 * int(part.removeprefix("blocks."))
            return f"input_hint_block.{place}.{tail}"
        case "controlnet_down_blocks":
            index, _, tail = rest.partition(".")
            return f"zero_convs.{index}.0.{tail}"
        case "controlnet_mid_block":
            return f"middle_block_out.0.{rest}"
        case _:
            return unet_name(name, layers)


# --- an upscaler: twice the size -------------------------------------------------------------------------------------


def make_upscaler(steps: int) -> None:
    rng = Random(35)
    pairs = [_both_sizes(rng) for _ in range(1200)]
    small = as_tensor(np.stack([pair[0] for pair in pairs])) / 2 + 0.5
    large = as_tensor(np.stack([pair[1] for pair in pairs])) / 2 + 0.5
    network = RRDBNet(features=16, growth=8, blocks=2, doublings=2, unshuffle=2)

    def loss(step: int) -> torch.Tensor:
        rows = torch.randint(len(small), (16,))
        top, left = 2 * rng.randrange(17), 2 * rng.randrange(17)
        given = small[rows, :, top : top + 32, left : left + 32]
        wanted = large[rows, :, 2 * top : 2 * top + 64, 2 * left : 2 * left + 64]
        enlarged = network(given)
        return F.l1_loss(enlarged, wanted) + edge_loss(enlarged, wanted)

    trained("upscaler", network, steps, loss, peak=4e-3)
    save("miniature-x2", {f"params_ema.{name}": tensor for name, tensor in network.state_dict().items()})


def _both_sizes(rng: Random) -> tuple[np.ndarray, np.ndarray]:
    """The same picture at 64 and at 128 pixels."""
    scene, seed = Scene.random(rng), rng.random()
    return scene.draw(64, Random(seed)), scene.draw(128, Random(seed))


COMPANIONS: dict[str, tuple[Callable[[int], None], int]] = {
    "lora": (make_lora, 700),
    "embedding": (make_embedding, 250),
    "vae": (make_vae, 400),
    "controlnet": (make_controlnet, 1500),
    "upscaler": (make_upscaler, 2500),
}
"""Name → how it is made, steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*COMPANIONS, []], help="all five when none is named")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.names or COMPANIONS:
        torch.manual_seed(30)
        make, steps = COMPANIONS[name]
        started = time.monotonic()
        make(steps)
        print(f"{name}: {steps} steps in {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
