"""Train the miniature checkpoint from nothing: ``python -m miniature.train``.

Three stages, each resumable from ``--work``: the VAE on freshly drawn pictures, then the pictures' latents once, then the
UNet together with the text encoder on stored latents. ``--threads 1`` is faster than 2 while anything else keeps a core busy.
Writes one single-file checkpoint in the SD 1.x key layout (``export.py``).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from miniature.export import save_checkpoint
from miniature.scenes import Scene

ROOT = Path(__file__).resolve().parent
TOKENIZER_DIR = ROOT.parent / "gpuworker" / "engine" / "data" / "clip_tokenizer"
CHECKPOINT = ROOT / "renderkiln-miniature.safetensors"
SCALE = 0.18215
"""SD 1.x multiplies latents by this; the exported VAE is rescaled so that the product has unit variance."""
CAPTION_VARIANTS = 4
EMPTY_CAPTION_SHARE = 0.1
HIGH_NOISE_WEIGHT = 8.0


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        # Even but not divisible by four, so that two groups are inferred: many small groups would normalise away the
        # colour of a flat region, which is all that these pictures are made of.
        block_out_channels=(30, 30, 46, 46),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=64,
    )


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(48, 96),
        down_block_types=["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2,
        layers_per_block=1,
        cross_attention_dim=48,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def new_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=48,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=1,
            hidden_act="quick_gelu",
            projection_dim=48,
        )
    )


def drawn(scenes: list[Scene], size_px: int, rng: Random) -> torch.Tensor:
    """uint8 pictures as float32 in -1…1, shape (len(scenes), 3, size_px, size_px)."""
    pixels = np.stack([scene.draw(size_px, rng) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised before each step; learns these small networks in far fewer steps.

    Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the update's scale follows
    J. Liu et al., "Muon is scalable for LLM training", 2025, section 2.2. Convolutions count as matrices of their filters.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(group["momentum"]).add_(gradient)
                matrix = (gradient + group["momentum"] * momentum).flatten(1)
                scale = 0.2 * max(matrix.shape) ** 0.5
                parameter.add_(orthogonal(matrix).view_as(parameter), alpha=-group["lr"] * scale)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with singular values near 1, by five Newton–Schulz steps of a quintic."""
    wide = matrix / (matrix.norm() + 1e-7)
    if turned := wide.shape[0] > wide.shape[1]:
        wide = wide.T
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.T if turned else wide


def optimizers_of(module: torch.nn.Module, *, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for everything else and for the embeddings. Each group keeps its peak rate."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [p for p in learned if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in learned if p.ndim < 2 or id(p) in embeddings]
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, lr=peak)] if matrices else []
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=2e-3, weight_decay=0.0, betas=(0.9, 0.98)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def optimize(optimizers: list[torch.optim.Optimizer], loss: torch.Tensor, *, share: float) -> None:
    """One step of every optimizer at ``share`` of its peak learning rate."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        optimizer.step()


def learning_share(step: int, steps: int, *, warm_up: int = 50, floor: float = 0.02) -> float:
    """From 0 to 1 in ``warm_up`` steps, then along a cosine down to ``floor``."""
    if step < warm_up:
        return (step + 1) / warm_up
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def train_vae(args: argparse.Namespace) -> AutoencoderKL:
    """Three quarters of the steps see crops, which cost a quarter and hold the same flat colours and edges."""
    path = args.work / "vae.pt"
    vae = new_vae()
    if path.exists():
        vae.load_state_dict(torch.load(path, weights_only=True))
        return vae.eval()
    vae.to(memory_format=torch.channels_last)
    rng = Random(11)
    bank = drawn([Scene.random(rng) for _ in range(4000)], 64, rng)
    optimizers = optimizers_of(vae, peak=2e-2)
    bar = tqdm(range(args.vae_steps), desc="vae", mininterval=5)
    for step in bar:
        whole = step > args.vae_steps * 3 // 4
        pictures = vae_batch(bank, rng, whole=whole, larger=whole and step % 8 == 7)
        latents = vae.quant_conv(vae.encoder(pictures))[:, :4]
        # Noise keeps the decoder calm about small errors of the UNet; the penalty keeps the latents from growing.
        noise = 0.1 * latents.std().detach() * torch.randn_like(latents)
        rebuilt = vae.decode(latents + noise).sample
        loss = picture_loss(rebuilt, pictures) + 2e-3 * latents.square().mean()
        if whole:
            loss = loss + 0.5 * edge_loss(rebuilt, pictures)
        optimize(optimizers, loss, share=learning_share(step, args.vae_steps))
        if step % 50 == 49:
            error = F.l1_loss(rebuilt, pictures).item()
            bar.set_postfix_str(f"error {error:.4f}, latent std {latents.std().item():.2f}")
    torch.save(vae.state_dict(), path)
    return vae.eval()


def vae_batch(bank: torch.Tensor, rng: Random, *, whole: bool, larger: bool) -> torch.Tensor:
    if larger:
        pictures = drawn([Scene.random(rng) for _ in range(3)], 128, rng)
    elif whole:
        pictures = bank[torch.randint(len(bank), (12,))]
    else:
        top, left = rng.randrange(33), rng.randrange(33)
        pictures = bank[torch.randint(len(bank), (16,)), :, top : top + 32, left : left + 32]
    return pictures.to(memory_format=torch.channels_last)


def picture_loss(rebuilt: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error; figures weigh three times the ground, of which there is more."""
    corner = pictures[:, :, :1, :1]
    weights = 1 + 2 * ((pictures - corner).abs().amax(dim=1, keepdim=True) > 0.2).float()
    error = rebuilt - pictures
    return (weights * (error.abs() + error.square())).mean()


def edge_loss(rebuilt: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    across = F.l1_loss(rebuilt.diff(dim=-1), pictures.diff(dim=-1))
    return across + F.l1_loss(rebuilt.diff(dim=-2), pictures.diff(dim=-2))


@torch.no_grad()
def encoded(args: argparse.Namespace, vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """Latents of the training pictures at both sizes and several captions each, drawn and encoded once."""
    path = args.work / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    rng, tokenizer, data = Random(12), CLIPTokenizer.from_pretrained(TOKENIZER_DIR), {}
    for size_px, count in ((64, args.pictures), (128, args.pictures // 8)):
        latents, tokens = [], []
        for _ in tqdm(range(count // 32), desc=f"encode {size_px} px", mininterval=5):
            scenes = [Scene.random(rng) for _ in range(32)]
            latents.append(vae.quant_conv(vae.encoder(drawn(scenes, size_px, rng)))[:, :4])
            captions = [scene.caption(rng) for scene in scenes for _ in range(CAPTION_VARIANTS)]
            ids = tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
            tokens.append(ids.view(32, CAPTION_VARIANTS, 77).to(torch.int32))
        data[f"latents{size_px}"], data[f"tokens{size_px}"] = torch.cat(latents), torch.cat(tokens)
    data["empty"] = tokenizer("", padding="max_length", max_length=77, return_tensors="pt").input_ids.to(torch.int32)
    data["std"] = data["latents64"].std()
    torch.save(data, path)
    return data


def batches(data: dict[str, torch.Tensor], seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (latents of unit variance, token ids); every tenth batch is of the larger size."""
    generator, step = torch.Generator().manual_seed(seed), 0
    while True:
        step += 1
        size_px, count = (128, 16) if step % 10 == 0 else (64, 64)
        latents, tokens = data[f"latents{size_px}"], data[f"tokens{size_px}"]
        rows = torch.randint(len(latents), (count,), generator=generator)
        ids = tokens[rows, torch.randint(CAPTION_VARIANTS, (count,), generator=generator)]
        emptied = torch.rand(count, generator=generator) < EMPTY_CAPTION_SHARE
        ids[emptied] = data["empty"]
        yield latents[rows] / data["std"], ids.long()


def train_unet(args: argparse.Namespace, data: dict[str, torch.Tensor]) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """ε-prediction on the SD 1.x noise schedule; the returned weights are the moving average."""
    torch.manual_seed(13)
    unet, text_encoder = new_unet(), new_text_encoder()
    both = torch.nn.ModuleList([unet, text_encoder])
    parameters = [parameter for parameter in both.parameters() if parameter.requires_grad]
    average = [parameter.detach().clone() for parameter in parameters]
    optimizers = optimizers_of(both, peak=5e-3)
    alphas_cumprod = noise_schedule()
    path, first = args.work / "unet.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        both.load_state_dict(state["both"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        average, first = state["average"], state["step"]
    bar = tqdm(range(first, args.unet_steps), desc="unet", initial=first, total=args.unet_steps, mininterval=5)
    feed, losses, last_save = batches(data, seed=14 + first), [], time.monotonic()
    for step in bar:
        latents, ids = next(feed)
        timesteps, noise = torch.randint(1000, (len(latents),)), torch.randn_like(latents)
        signal = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        predicted = unet(noisy, timesteps, text_encoder(ids).last_hidden_state).sample
        # Weighted towards high noise, where the caption decides colours and layout but the noise is easy to predict.
        weights = (1 / signal).clamp(max=HIGH_NOISE_WEIGHT)
        loss = (weights * (predicted - noise).square()).mean() / weights.mean()
        optimize(optimizers, loss, share=learning_share(step, args.unet_steps))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - min(0.999, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if step % 100 == 99:
            bar.set_postfix_str(f"loss {sum(losses[-500:]) / len(losses[-500:]):.4f}")
        if time.monotonic() - last_save > 180 or step == args.unet_steps - 1:
            kept = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"both": both.state_dict(), "optimizers": kept, "average": average, "step": step + 1}, path)
            last_save = time.monotonic()
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    return unet.eval(), text_encoder.eval()


def noise_schedule() -> torch.Tensor:
    """The cumulative products of SD 1.x: scaled linear, 0.00085 to 0.012, 1 000 steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("var/miniature"), help="where the stages are kept")
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vae-steps", type=int, default=2200)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--unet-steps", type=int, default=3000)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(10)
    vae = train_vae(args)
    data = encoded(args, vae)
    unet, text_encoder = train_unet(args, data)
    save_checkpoint(args.out, unet=unet, vae=vae, text_encoder=text_encoder, latent_std=data["std"].item())
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
