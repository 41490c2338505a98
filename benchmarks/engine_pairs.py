"""The engine against stock diffusers and against itself: batching, shared passes, exact mode, LoRA changes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pairs import Ratio, measured
from gpuworker.contract import NetworkUse, Recipe, Rendered, RenderSpec, Weights, WeightsFile

MINIATURE = Path(__file__).resolve().parents[1] / "miniature"
STEPS, SIDE_PX, CFG_SCALE = 20, 64, 7.0
PROMPTS = (
    "a red circle on a blue background", "a green square on a white background", "a yellow ring, purple background",
    "the sea at sunset", "a white cross on black", "an orange triangle on the left, cyan background", "green hills by day",
    "a black box on pink ground",
)  # fmt: skip
LORA_CHANGES = 50


def sixteen_requests() -> Ratio:
    """Pictures of both sides are compared: speed is not bought with other pictures."""
    recipes = [recipe(PROMPTS[index % len(PROMPTS)], seed=index) for index in range(16)]
    stock = StockPipeline(renderer(), spec_of([recipe(PROMPTS[0], seed=0)]))
    ours, theirs = rendered(recipes), [stock.picture(item) for item in recipes]
    return measured(
        name="engine-16",
        meaning="16 single-image requests: our engine's rate ÷ a stock diffusers pipeline's, one call each",
        goal="≥ 3",
        above=lambda: [stock.picture(item) for item in recipes],
        below=lambda: rendered(recipes),
        notes={"steps": STEPS, "side_px": SIDE_PX, "largest_difference": largest_difference(ours, theirs)},
    )


def one_request() -> Ratio:
    item = recipe(PROMPTS[0], seed=1)
    stock = StockPipeline(renderer(), spec_of([item]))
    return measured(
        name="engine-1",
        meaning="one request: our engine's rate ÷ a stock diffusers pipeline's",
        goal="≥ 1.0",
        above=lambda: stock.picture(item),
        below=lambda: rendered([item]),
        pairs=9,
        notes={"steps": STEPS, "largest_difference": largest_difference(rendered([item]), [stock.picture(item)])},
    )


def lora_changes() -> Ratio:
    """No module is replaced by a change, so nothing that was compiled for one has to be compiled again."""
    uses = [lora(weight=1 - index / LORA_CHANGES) for index in range(LORA_CHANGES)]
    item = replace(recipe(PROMPTS[0], seed=1), steps=2)
    unet = renderer().shelf.checkpoint(spec_of([item]), item.checkpoint).checkpoint.unet
    modules = [id(module) for module in unet.modules()]

    def through(changes: Sequence[NetworkUse]) -> None:
        for use in changes:
            rendered([replace(item, networks=(use,))])

    ratio = measured(
        name="B11",
        meaning=f"{LORA_CHANGES} passes of 2 steps that change a LoRA ÷ as many that keep it",
        goal="0 modules replaced",
        above=lambda: through(uses),
        below=lambda: through(uses[:1] * LORA_CHANGES),
    )
    replaced = sum(before != id(module) for before, module in zip(modules, unet.modules(), strict=True))
    assert not replaced, f"{replaced} modules were replaced by a LoRA."
    each_ms = 1000 * (ratio.above_seconds - ratio.below_seconds) / LORA_CHANGES
    return replace(ratio, notes={"modules_replaced": replaced, "milliseconds_per_change": round(each_ms, 3)})


def exact_mode() -> Ratio:
    recipes = [recipe(PROMPTS[index], seed=index) for index in range(8)]
    exact = [replace(item, exact=True) for item in recipes]
    together, alone = rendered(exact), [rendered([item])[0] for item in exact]
    assert largest_difference(together, alone) == 0, "Exact mode gave another picture to an image that was alone."
    return measured(
        name="B12",
        meaning="exact mode's rate ÷ fast mode's, full micro-batches of 8",
        goal="≥ 0.97",
        above=lambda: rendered(recipes),
        below=lambda: rendered(exact),
        pairs=9,
    )


def shared_passes_of_the_engine() -> Ratio:
    """The launches of the miniature cost what they cost here; B13 dictates it and asks the whole platform."""
    one = [recipe(PROMPTS[0], seed=index) for index in range(8)]
    other = [recipe(PROMPTS[1], seed=index) for index in range(8)]
    return measured(
        name="B13-engine",
        meaning="the engine alone, real: two times 8 images sharing passes: rate ÷ rate of one after the other",
        goal="≥ 1.0",
        above=lambda: (rendered(one), rendered(other)),
        below=lambda: rendered([*one, *other]),
    )


# --- the two sides ---------------------------------------------------------------------------------------------------


@cache
def renderer() -> Any:
    from gpuworker.engine import DiffusersRenderer

    return DiffusersRenderer(device="auto", dtype="auto")


@cache
def weights_of(stem: str) -> Weights:
    path = MINIATURE / f"{stem}.safetensors"
    return Weights(name=stem, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def recipe(prompt: str, *, seed: int) -> Recipe:
    return Recipe(
        prompt=prompt,
        negative_prompt="",
        seed=seed,
        subseed=0,
        sampler="Euler",
        steps=STEPS,
        cfg_scale=CFG_SCALE,
        width=SIDE_PX,
        height=SIDE_PX,
        checkpoint=weights_of("renderkiln-miniature"),
    )


def lora(*, weight: float) -> NetworkUse:
    return NetworkUse(kind="lora", weights=weights_of("miniature-moonlight"), te=weight, unet=weight)


def spec_of(recipes: Sequence[Recipe]) -> RenderSpec:
    used = {weights.sha256: weights for item in recipes for weights in item.weights()}
    files = {sha256: WeightsFile(MINIATURE / f"{weights.name}.safetensors") for sha256, weights in used.items()}
    return RenderSpec(tuple(recipes), files)


def rendered(recipes: Sequence[Recipe]) -> list[np.ndarray]:
    pictures = []
    for outcome in renderer().render(spec_of(recipes), on_step=lambda *_: None, should_stop=lambda: False):
        assert isinstance(outcome, Rendered), outcome
        made = outcome.picture
        pictures.append(np.frombuffer(made.pixels, np.uint8).reshape(made.height, made.width, 3))
    return pictures


class StockPipeline:
    """The pipeline of diffusers around the very networks of our engine, one call per request."""

    def __init__(self, engine: Any, spec: RenderSpec) -> None:
        """Args: spec: Of the checkpoint."""
        loaded = engine.shelf.checkpoint(spec, spec.recipes[0].checkpoint).checkpoint  # type: ignore[union-attr]
        self.pipeline: Any = (_stock_sdxl if loaded.family == "sdxl" else _stock_sd1)(loaded)
        self.pipeline.set_progress_bar_config(disable=True)

    def picture(self, item: Recipe) -> np.ndarray:
        generator = torch.Generator("cpu").manual_seed(item.seed)
        return np.asarray(
            self.pipeline(
                item.prompt,
                negative_prompt=item.negative_prompt or None,
                num_inference_steps=item.steps,
                guidance_scale=item.cfg_scale,
                width=item.width,
                height=item.height,
                generator=generator,
            ).images[0]
        )


def _stock_sd1(loaded: Any) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=loaded.vae,
        text_encoder=loaded.text[0].model,
        tokenizer=_stock_tokenizer(),
        unet=loaded.unet,
        scheduler=_stock_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stock_sdxl(loaded: Any) -> Any:
    from diffusers import StableDiffusionXLPipeline

    one, other = (tower.model for tower in loaded.text)
    loaded.vae.register_to_config(scaling_factor=loaded.latent_scale)  # which our engine keeps elsewhere
    return StableDiffusionXLPipeline(
        vae=loaded.vae,
        text_encoder=one,
        text_encoder_2=other,
        tokenizer=_stock_tokenizer(),
        tokenizer_2=_stock_tokenizer(pad_token="!"),  # as it was published
        unet=_stock_unet_of_sdxl(loaded),
        scheduler=_stock_scheduler(),
        force_zeros_for_empty_prompt=True,  # as our engine does
        add_watermarker=False,
    )


def _stock_unet_of_sdxl(loaded: Any) -> Any:
    """The engine gives sizes and pooled text as one vector; the pipeline gives them one by one. The weights are the same."""
    from diffusers import UNet2DConditionModel

    weights = {
        name.replace("class_embedding.", "add_embedding."): one for name, one in loaded.unet.state_dict().items()
    }
    config = {**loaded.unet.config, "class_embed_type": None, "addition_embed_type": "text_time"}
    config["addition_time_embed_dim"] = loaded.size_embedding_width
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**{name: value for name, value in config.items() if not name.startswith("_")})
    unet.load_state_dict(weights, assign=True)
    return unet.eval()


def _stock_tokenizer(**changes: Any) -> Any:
    from transformers import CLIPTokenizer

    from gpuworker.engine.prompts.tokens import TOKENIZER_DIR

    return CLIPTokenizer.from_pretrained(TOKENIZER_DIR, **changes)


def _stock_scheduler() -> Any:
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )


def largest_difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> int:
    """In levels of 255, over all pictures."""
    pairs = zip(one, other, strict=True)
    return max(int(np.abs(left.astype(np.int16) - right.astype(np.int16)).max()) for left, right in pairs)
