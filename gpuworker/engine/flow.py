"""One micro-batch of pictures drawn with Stable Diffusion 3 or Flux, from prompts to latents.

The networks and the schedule are those of diffusers; texts, noise and the loop are ours, so that each image of a pass has its own
noise and guidance. What these families cannot do is refused before anything is drawn.

Source: ``pipeline_stable_diffusion_3.py``, ``pipeline_flux.py`` and their img2img companions in diffusers 0.42.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler

from gpuworker.contract import Attachment, Img2Img, Picture, Recipe, RenderSpec
from gpuworker.contract.flow import FLOW_FAMILIES, refusals
from gpuworker.contract.prompts import strip_network_tags
from gpuworker.contract.recipe import LATENT_FACTOR
from gpuworker.engine.drawing import Drawn
from gpuworker.engine.errors import InvalidPictureError, InvalidSpecError
from gpuworker.engine.images.init import Prepared, prepare
from gpuworker.engine.images.resize import Scale, lanczos
from gpuworker.engine.images.upscale import BUILT_IN, resized_to, upscaler_of
from gpuworker.engine.images.vae import posterior_mode, previews
from gpuworker.engine.models.cache import ByteCache
from gpuworker.engine.models.flow import T5_TOKENS, FlowModel, TextPart
from gpuworker.engine.models.precision import type_of
from gpuworker.engine.models.shelf import ModelShelf
from gpuworker.engine.prompts.parser import parse_attention, split_composition
from gpuworker.engine.sampling.denoise import PREVIEW_STEPS, Watch
from gpuworker.engine.sampling.noise import PassNoise

PATCH = 2
"""Latents along a side that Flux reads as one."""
TRAINING_STEPS = 1000
CACHE_BYTES = 256 * 1024**2
Predictor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Latents and a sigma to the velocity there."""


class FlowDrawing:
    """Draws the recipes of one spec; used once. The renderer drives it as it drives ``Drawing``."""

    def __init__(self, spec: RenderSpec, family: str, shelf: ModelShelf, prompts: FlowPrompts, watch: Watch) -> None:
        """Raises: InvalidSpecError: A recipe asks for something the family cannot do."""
        self.spec = spec
        self.shelf = shelf
        self.prompts = prompts
        self.watch = watch
        self.recipes = [recipe for recipe in spec.recipes if isinstance(recipe, Recipe)]
        self.failures: dict[int, InvalidPictureError] = {}
        """Images whose own input cannot be used; the others are drawn without them."""
        self.image_calls = 0
        """Calls of the denoiser so far, each counted once for every image in it."""
        self._prepared: dict[int, Prepared] = {}
        for refusal in (refusal for recipe in self.recipes for refusal in refusals(recipe, family)):
            raise InvalidSpecError(refusal.message, field=refusal.field, value=refusal.value)

    def load(self) -> None:
        """Bring the networks to the device and open the input pictures: time that counts for nobody."""
        self.model = self.shelf.flow(self.spec, self.recipes[0].checkpoint)
        _require_positions(self.model, self.recipes[0])
        for position, recipe in enumerate(self.recipes):
            if recipe.img2img:
                self._prepare(position, recipe, recipe.img2img)

    def _prepare(self, position: int, recipe: Recipe, given: Img2Img) -> None:
        try:
            self._prepared[position] = prepare(
                given,
                path_of=self.spec.path_of,
                width=recipe.width,
                height=recipe.height,
                settings=recipe.settings,
                scale=self._scale(recipe, given),
            )
        except InvalidPictureError as error:
            self.failures[position] = error

    def _scale(self, recipe: Recipe, given: Img2Img) -> Scale:
        """How an input picture that is too small is enlarged; by Lanczos where nobody knows the upscaler."""
        name = recipe.settings.upscaler_for_img2img
        network = self.shelf.upscaler(self.spec, given.upscaler) if given.upscaler else None
        if name == "None" or (network is None and name not in BUILT_IN):
            return lanczos
        upscaler = upscaler_of(name, network, recipe.settings, self.watch.should_stop)
        return partial(resized_to, upscaler=upscaler)

    @torch.inference_mode()
    def draw(self) -> dict[int, Drawn] | None:
        """All images by their position but those of ``failures``; None when stopped."""
        groups = self._groups()
        progress = _Progress(self.watch, total=len(groups) * self._steps_taken)
        drawn: dict[int, Drawn] = {}
        config = self.model.vae.config
        for group in groups:
            finished = self._denoised(group, progress)
            if finished is None:
                return None
            for position, latents in zip(group, finished, strict=True):
                drawn[position] = Drawn(latents, self.model.vae, config.scaling_factor, config.shift_factor)
        return drawn

    def _groups(self) -> list[list[int]]:
        """Images that are denoised together: guided and unguided ones apart; in exact mode each alone."""
        everyone = [position for position in range(len(self.recipes)) if position not in self.failures]
        if self.recipes[0].exact:
            return [[position] for position in everyone]
        guided = [position for position in everyone if self._is_guided(position)]
        return [group for group in (guided, [position for position in everyone if position not in guided]) if group]

    def _is_guided(self, position: int) -> bool:
        """Whether the negative prompt takes part; the network of Flux is told its guidance instead."""
        return self.model.family == "sd3" and self.recipes[position].cfg_scale > 1

    @property
    def _first_step(self) -> int:
        """In img2img the first steps are left out."""
        steps = self.recipes[0].steps
        return int(steps - min(steps * self.recipes[0].strength, steps)) if self.recipes[0].img2img else 0

    @property
    def _steps_taken(self) -> int:
        return self.recipes[0].steps - self._first_step

    def _denoised(self, group: Sequence[int], progress: _Progress) -> torch.Tensor | None:
        """Finished latents, float32, shape (images, channels, height, width)."""
        recipes = [self.recipes[position] for position in group]
        height, width = recipes[0].height // LATENT_FACTOR, recipes[0].width // LATENT_FACTOR
        sigmas = flow_sigmas(self.model, recipes[0].steps, height=height, width=width)
        latents = self._start(group, recipes, sigmas[self._first_step], height, width)
        predict = self._predictor(recipes, guided=self._is_guided(group[0]))
        for step in range(self._first_step, recipes[0].steps):
            if self.watch.should_stop():
                return None
            velocity = predict(latents, sigmas[step])
            self.image_calls += len(group)
            ahead = latents - sigmas[step] * velocity
            latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
            progress.step_done(partial(self._previews, ahead) if len(group) == len(self.recipes) else None)
        return latents

    def _start(
        self, group: Sequence[int], recipes: Sequence[Recipe], sigma: torch.Tensor, height: int, width: int
    ) -> torch.Tensor:
        """Noise, or input pictures with as much of it as the first step takes away."""
        noise = PassNoise(recipes, (self.model.vae.config.latent_channels, height, width)).first.to(self.shelf.device)
        if not recipes[0].img2img:
            return noise
        pictures = torch.stack([self._encoded(self._prepared[position]) for position in group])
        return sigma * noise + (1 - sigma) * pictures

    def _encoded(self, prepared: Prepared) -> torch.Tensor:
        values = torch.from_numpy(np.asarray(prepared.picture, dtype=np.float32) / 255.0).permute(2, 0, 1) * 2 - 1
        config = self.model.vae.config
        return (posterior_mode(self.model.vae, values) - config.shift_factor) * config.scaling_factor

    def _predictor(self, recipes: Sequence[Recipe], *, guided: bool) -> Predictor:
        key = self.recipes[0].checkpoint.sha256
        positive = self.prompts.encode(self.model, key, [strip_network_tags(recipe.prompt) for recipe in recipes])
        scales = torch.tensor([recipe.cfg_scale for recipe in recipes], device=self.shelf.device)
        if self.model.family == "flux":
            return partial(flux_velocity, self.model, positive, scales if self.model.reads_guidance else None)
        negative = (
            self.prompts.encode(self.model, key, [recipe.negative_prompt for recipe in recipes]) if guided else None
        )
        return partial(sd3_velocity, self.model, positive, negative, scales)

    def _previews(self, ahead: torch.Tensor) -> Sequence[Picture]:
        config = self.model.vae.config
        return previews(self.model.vae, ahead, latent_scale=config.scaling_factor, latent_shift=config.shift_factor)

    def finish_of(self, position: int) -> None:
        """Nothing is done to a decoded picture before its values become bytes."""

    def finished(self, position: int, pixels: np.ndarray) -> tuple[Picture, list[Attachment]]:
        """What a decoded picture becomes: uint8, shape (height, width, 3)."""
        if position in self._prepared:
            return self._prepared[position].finish(pixels)
        height, width, _ = pixels.shape
        return Picture(width, height, pixels.tobytes()), []

    def warnings_of(self, position: int) -> tuple[str, ...]:
        recipe, model = self.recipes[position], self.model
        sentences = [*self._prepared[position].warnings] if position in self._prepared else []
        if not (reads_plainly(recipe.prompt) and reads_plainly(recipe.negative_prompt)):
            name = FLOW_FAMILIES[model.family]
            sentences.append(f"{name} reads brackets, AND and BREAK as they stand: weights and editing have no effect.")
        if model.reader.cuts(strip_network_tags(recipe.prompt)):
            sentences.append(f"What follows the first {model.reader.max_tokens} tokens of the prompt has no effect.")
        if model.family == "flux" and not model.reads_guidance:
            sentences.append("The CFG scale has no effect: this Flux is distilled to few steps and takes no guidance.")
        return tuple(sentences)


class _Progress:
    """Steps over all groups of a pass, and previews every few of them."""

    def __init__(self, watch: Watch, *, total: int) -> None:
        self.watch = watch
        self.total = total
        self.done = 0

    def step_done(self, make_previews: Callable[[], Sequence[Picture]] | None) -> None:
        self.done += 1
        self.watch.on_step(self.done, self.total)
        if self.watch.on_preview and make_previews and self.done % PREVIEW_STEPS == 0:
            self.watch.on_preview(make_previews)


def _require_positions(model: FlowModel, recipe: Recipe) -> None:
    """Stable Diffusion 3 has an embedding for so many places along a side."""
    if model.family != "sd3":
        return
    most = model.transformer.config.pos_embed_max_size * PATCH * LATENT_FACTOR
    for name in ("width", "height"):
        if (pixels := getattr(recipe, name)) > most:
            raise InvalidSpecError(
                f"{name} is {pixels}; this checkpoint draws up to {most} pixels.", field=name, value=pixels
            )


def reads_plainly(prompt: str) -> bool:
    """Whether A1111's grammar sees nothing in a prompt but its text."""
    text = strip_network_tags(prompt)
    fragments = parse_attention(text)
    plain = not text or [(fragment.text, fragment.weight) for fragment in fragments] == [(text, 1.0)]
    return plain and len(split_composition(text)) == 1


# --- texts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the denoiser reads of one or several texts."""

    context: torch.Tensor
    """Shape (texts, tokens, width)."""
    pooled: torch.Tensor
    """Shape (texts, width)."""

    @property
    def size_bytes(self) -> int:
        return self.context.nbytes + self.pooled.nbytes


class FlowPrompts:
    """Encodes texts, each alone, so that it reads the same in any company; keeps what it encoded (H7)."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._kept: ByteCache[Encoded] = ByteCache(max_bytes, size_of=lambda encoded: encoded.size_bytes)

    def encode(self, model: FlowModel, key: str, texts: Sequence[str]) -> Encoded:
        """Args: key: Names the file of the model."""
        encode = _sd3_text if model.family == "sd3" else _flux_text
        found = [self._kept.get_or_make((key, text), partial(encode, model, text)) for text in texts]
        return Encoded(torch.cat([one.context for one in found]), torch.cat([one.pooled for one in found]))


def _sd3_text(model: FlowModel, text: str) -> Encoded:
    """Both CLIPs beside each other, as wide as the T5, whose tokens follow; zeros where the file has none."""
    outputs = [part.network(part.tokens([text]), output_hidden_states=True) for part in model.clip]
    clip = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    width = model.transformer.config.joint_attention_dim
    t5 = _t5_states(model.t5, text) if model.t5 else clip.new_zeros(1, T5_TOKENS["sd3"], width)
    return Encoded(
        context=torch.cat([F.pad(clip, (0, width - clip.shape[-1])), t5], dim=1),
        pooled=torch.cat([output.text_embeds for output in outputs], dim=-1),
    )


def _flux_text(model: FlowModel, text: str) -> Encoded:
    (clip,), t5 = model.clip, model.t5
    assert t5 is not None, "A Flux without its T5 is not loaded."
    return Encoded(context=_t5_states(t5, text), pooled=clip.network(clip.tokens([text])).pooler_output)


def _t5_states(part: TextPart, text: str) -> torch.Tensor:
    return part.network(part.tokens([text]))[0]


# --- steps -----------------------------------------------------------------------------------------------------------


def flow_sigmas(model: FlowModel, steps: int, *, height: int, width: int) -> torch.Tensor:
    """One more than there are steps, the last 0; float32 on the transformer's device.

    Args:
        height, width: Of the latents.
    """
    schedule = FlowMatchEulerDiscreteScheduler.from_config(model.schedule)
    # Stable Diffusion 3 leaves the spacing to the schedule.
    own = None if model.family == "sd3" else np.linspace(1.0, 1 / steps, steps)
    shift = _shift_of(schedule, height, width) if schedule.config.use_dynamic_shifting else None
    schedule.set_timesteps(None if own is not None else steps, sigmas=own, mu=shift)
    return schedule.sigmas.to(model.transformer.device, torch.float32)


def _shift_of(schedule: FlowMatchEulerDiscreteScheduler, height: int, width: int) -> float:
    """Grows in a line with the number of patches."""
    config = schedule.config
    patches = (height // PATCH) * (width // PATCH)
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return float(config.base_shift + slope * (patches - config.base_image_seq_len))


def sd3_velocity(
    model: FlowModel,
    positive: Encoded,
    negative: Encoded | None,
    scales: torch.Tensor,
    latents: torch.Tensor,
    sigma: torch.Tensor,
) -> torch.Tensor:
    """Where the latents move, float32 like them.

    Args:
        negative: None where no image is guided.
        scales: CFG scale per image.
    """
    texts = [negative, positive] if negative else [positive]
    rows = torch.cat([latents] * len(texts)).to(type_of(model.transformer))
    predicted = model.transformer(
        hidden_states=rows,
        timestep=(sigma * TRAINING_STEPS).expand(len(rows)),
        encoder_hidden_states=torch.cat([text.context for text in texts]),
        pooled_projections=torch.cat([text.pooled for text in texts]),
        return_dict=False,
    )[0].float()
    if negative is None:
        return predicted
    away, towards = predicted.chunk(2)
    return away + scales.view(-1, 1, 1, 1) * (towards - away)


def flux_velocity(
    model: FlowModel, text: Encoded, guidance: torch.Tensor | None, latents: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Where the latents move, float32 like them.

    Args:
        guidance: Per image; None for a network that is not told.
    """
    _, channels, height, width = latents.shape
    dtype = type_of(model.transformer)
    predicted = model.transformer(
        hidden_states=F.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2).to(dtype),
        timestep=sigma.expand(len(latents)).to(dtype),
        guidance=guidance,
        pooled_projections=text.pooled,
        encoder_hidden_states=text.context,
        txt_ids=latents.new_zeros(text.context.shape[1], 3),
        img_ids=_places(height // PATCH, width // PATCH, latents),
        return_dict=False,
    )[0].float()
    patches = predicted.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
    return F.pixel_shuffle(patches, PATCH)


def _places(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """0, row and column of every patch; shape (patches, 3)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1).to(like)
