"""One micro-batch of pictures from prompts to latents: which model runs when, from where each pass starts, what steers it.

Reads like A1111's ``process_images`` without its files and pages. Formulas live in ``sampling``, pictures in ``images``, weights in
``models``; the renderer around it knows about time, memory and failures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any

import numpy as np
import torch

from gpuworker.contract import (
    Attachment,
    ControlUnit,
    Img2Img,
    NetworkUse,
    Picture,
    Recipe,
    Reconstruction,
    RenderSpec,
    Weights,
)
from gpuworker.contract.prompts import strip_network_tags
from gpuworker.contract.recipe import EXACT_ROWS, LATENT_FACTOR
from gpuworker.engine.compiling import CompiledShapes
from gpuworker.engine.errors import CheckpointError, ControlNetworkError, EngineError, InvalidPictureError
from gpuworker.engine.execution_plan import ExecutionPlan, PassPlan
from gpuworker.engine.images.controlnet.hints import unit_of_pass
from gpuworker.engine.images.controlnet.units import (
    NoControlError,
    PreparedUnit,
    finished_by,
    is_model_free,
    prepare_unit,
    region_of,
)
from gpuworker.engine.images.init import ORIGINAL, Prepared, prepare
from gpuworker.engine.images.latents import EDITING_CHANNELS, PictureEncoder, concat_without_picture, given_latents
from gpuworker.engine.images.resize import Scale, lanczos
from gpuworker.engine.images.soft_inpainting import distances
from gpuworker.engine.images.upscale import (
    BUILT_IN,
    UNCHANGED,
    Upscaler,
    enlarge,
    resized_to,
    upscale_latents,
    upscaler_of,
)
from gpuworker.engine.images.vae import Finish, encoded, pixels_of, previews
from gpuworker.engine.models.controlnets import ControlNetwork
from gpuworker.engine.models.loader import Checkpoint
from gpuworker.engine.models.shelf import LoadedCheckpoint, ModelShelf
from gpuworker.engine.models.tiling import tiled
from gpuworker.engine.models.token_merging import token_merging
from gpuworker.engine.prompts.embeddings import Embedding
from gpuworker.engine.prompts.encoder import Conditioning, PromptEncoder, PromptRequest
from gpuworker.engine.sampling.control import ControlledUNet, PassControl, UnitOfPass, pass_control
from gpuworker.engine.sampling.denoise import Watch, denoise
from gpuworker.engine.sampling.guidance import (
    Blend,
    Denoiser,
    GuidedDenoiser,
    LcmPrediction,
    Network,
    NoisePrediction,
    RefinerSwitch,
    SigmaPrediction,
    Steering,
    UNet,
)
from gpuworker.engine.sampling.noise import Noise, PassNoise
from gpuworker.engine.sampling.reconstruction import ReversedPrediction, mixed, noise_behind
from gpuworker.engine.sampling.samplers import SOLVERS, SolverRun
from gpuworker.engine.sampling.schedules import LcmNoiseLevels, NoiseLevels, alphas_for
from gpuworker.engine.sampling.start import Range, Start, begin_from_latents, begin_from_noise


@dataclass(frozen=True, slots=True)
class Drawn:
    """Finished latents of one image and what decodes them."""

    latents: torch.Tensor
    """float32, shape (channels, height, width)."""
    vae: Any
    """``AutoencoderKL``."""
    latent_scale: float
    latent_shift: float = 0.0


class Drawing:
    """Draws the recipes of one spec; used once."""

    def __init__(
        self,
        spec: RenderSpec,
        plan: ExecutionPlan,
        shelf: ModelShelf,
        prompts: PromptEncoder,
        pictures: PictureEncoder,
        watch: Watch,
        compiled: CompiledShapes,
    ) -> None:
        self.spec = spec
        self.plan = plan
        self.shelf = shelf
        self.prompts = prompts
        self.pictures = pictures
        self.watch = watch
        self.compiled = compiled
        self.recipes = [recipe for recipe in spec.recipes if isinstance(recipe, Recipe)]
        self.failures: dict[int, EngineError] = {}
        """Images whose own input or control cannot be used; the others are drawn without them."""
        self._ready: dict[Img2Img, Prepared] = {}
        self._prepared: dict[int, Prepared] = {}
        """Of img2img: what became of each input picture."""
        self._distances: dict[int, np.ndarray] = {}
        """Of soft inpainting: how far each latent moved."""
        self._ready_units: dict[tuple[ControlUnit, Img2Img | None, int], PreparedUnit] = {}
        self._units: dict[int, list[PreparedUnit]] = {}
        """Of control: what each unit shows; images whose units cannot be used have none."""
        self._warnings: dict[int, list[str]] = {}
        self.family = ""
        """Of the checkpoint that begins."""
        self.image_calls = 0
        """Calls of the denoiser so far, each counted once for every image in it."""

    def load(self) -> None:
        """Bring the checkpoint to the device and open the input pictures: time that counts for nobody."""
        loaded = self.checkpoint(self.recipes[0].checkpoint)
        self.family = loaded.checkpoint.family
        for position, recipe in enumerate(self.recipes):
            if recipe.img2img:
                self._prepare(position, recipe, recipe.img2img)
            if recipe.control and position not in self.failures:
                self._prepare_units(position, recipe)
        if self._units:
            self._load_networks(loaded)

    def _prepare(self, position: int, recipe: Recipe, given: Img2Img) -> None:
        try:
            if given not in self._ready:
                self._ready[given] = prepare(
                    given,
                    path_of=self.spec.path_of,
                    width=recipe.width,
                    height=recipe.height,
                    settings=recipe.settings,
                    scale=self._img2img_scale(recipe, given),
                )
        except InvalidPictureError as error:
            self.failures[position] = error
            return
        ready = self._prepared[position] = self._ready[given]
        self.warn([position], ready.warnings)

    def _prepare_units(self, position: int, recipe: Recipe) -> None:
        try:
            self._units[position] = [
                self._prepared_unit(unit, recipe.img2img, map_seed(recipe) if unit.module == "shuffle" else 0)
                for unit in recipe.control
            ]
        except NoControlError as error:
            self.warn([position], [str(error)])
        except InvalidPictureError as error:
            self.failures[position] = error

    def _load_networks(self, loaded: LoadedCheckpoint) -> None:
        """Images with control cannot do without its networks; those that have none can."""
        try:
            for unit in self.recipes[0].control:
                self.control_network(unit, loaded)
        except (CheckpointError, ControlNetworkError) as error:
            self.failures |= dict.fromkeys(self._units, error)

    def control_network(self, unit: ControlUnit, loaded: LoadedCheckpoint) -> ControlNetwork | None:
        """None for modules that need none, whatever the unit names.

        Raises:
            CheckpointError: The file is no ControlNet.
            ControlNetworkError: It was made for another family.
        """
        if unit.weights is None or is_model_free(unit):
            return None
        return self.shelf.controlnet(self.spec, unit.weights, loaded)

    def _prepared_unit(self, unit: ControlUnit, img2img: Img2Img | None, seed: int) -> PreparedUnit:
        """Images of one job mostly show the same."""
        key = unit, img2img, seed
        if key not in self._ready_units:
            self._ready_units[key] = prepare_unit(
                unit,
                path_of=self.spec.path_of,
                img2img=img2img,
                canvas=self.plan.first.canvas,
                hires_canvas=self.plan.second.canvas if self.plan.second else None,
                seed=seed,
            )
        return self._ready_units[key]

    def units(self, group: Sequence[int]) -> list[list[PreparedUnit]]:
        """What each unit shows, image by image of a group that goes together; none where control was dropped."""
        shown = [self._units.get(position, []) for position in group]
        return [list(unit) for unit in zip(*shown, strict=True)]

    def finish_of(self, position: int) -> Finish | None:
        """What control units do to the decoded picture."""
        return partial(finished_by, units) if (units := self._units.get(position)) else None

    def _img2img_scale(self, recipe: Recipe, given: Img2Img) -> Scale:
        """How an input picture that is too small is enlarged."""
        name = recipe.settings.upscaler_for_img2img
        if name == "None":
            return lanczos
        known = given.upscaler is not None or name in BUILT_IN
        # QUIRK(A1111 1.10): an upscaler nobody knows enlarges by two Lanczos instead of one.
        upscaler = self.upscaler(name, given.upscaler) if known else UNCHANGED
        return partial(resized_to, upscaler=upscaler)

    def checkpoint(self, weights: Weights) -> LoadedCheckpoint:
        loaded = self.shelf.checkpoint(self.spec, weights)
        vae = self.recipes[0].vae
        return self.shelf.vae(self.spec, vae, loaded) if vae else loaded

    @torch.inference_mode()
    def draw(self) -> dict[int, Drawn] | None:
        """All images by their position but those of ``failures``; None when stopped."""
        passes = (self.plan.first, self.plan.second)
        # Solvers that choose their own steps measure an error over all latents they are given, so images run alone.
        alone = any(plan and SOLVERS[plan.sampler.name].adaptive for plan in passes)
        everyone = [position for position in range(len(self.recipes)) if position not in self.failures]
        drawn: dict[int, Drawn] = {}
        for group in [[position] for position in everyone] if alone else self._groups(everyone):
            finished = self._draw(group)
            if finished is None:
                return None
            decoder = finished.checkpoint
            for position, latents in zip(group, finished.latents, strict=True):
                drawn[position] = Drawn(latents, decoder.vae, decoder.latent_scale)
        return drawn

    def _groups(self, everyone: list[int]) -> list[list[int]]:
        """Images that go together: one that lost its control does not see that of the others."""
        controlled = [position for position in everyone if position in self._units]
        plain = [position for position in everyone if position not in self._units]
        return [group for group in (controlled, plain) if group]

    def _draw(self, group: list[int]) -> _Finished | None:
        recipe = self.recipes[group[0]]
        loaded = self.checkpoint(recipe.checkpoint)
        first = _Pass(self, group, self.plan.first, loaded, recipe.networks)
        if recipe.img2img:
            return first.from_pictures([self._prepared[position] for position in group])
        finished = first.from_noise()
        if finished is None or self.plan.second is None or recipe.hires is None:
            return finished
        if recipe.hires.checkpoint:
            loaded = self.checkpoint(recipe.hires.checkpoint)
        networks = recipe.networks if recipe.hires.networks is None else recipe.hires.networks
        second = _Pass(self, group, self.plan.second, loaded, networks)
        return second.from_latents(self._enlarged(finished, loaded.checkpoint))

    def _enlarged(self, first: _Finished, into: Checkpoint) -> torch.Tensor:
        """The first pass' latents at the size of the second, before the crop."""
        width, height = self.plan.enlarged
        if self.plan.latent_upscale:
            hires = self.recipes[0].hires
            mode = (hires.upscaler if hires else None) or "Latent"
            return upscale_latents(first.latents, mode, (height // LATENT_FACTOR, width // LATENT_FACTOR))
        upscaler = self._hires_upscaler()
        scale = first.checkpoint.latent_scale
        with tiled((first.checkpoint.vae, into.vae), on=self.recipes[0].tiling):
            pictures = [
                pixels_of(first.checkpoint.vae, latents, latent_scale=scale).numpy() for latents in first.latents
            ]
            large = [enlarge(picture, width, height, upscaler) for picture in pictures]
            return torch.stack([encoded(into, picture) for picture in large])

    def embeddings_of(self, recipe: Recipe, networks: Sequence[NetworkUse]) -> tuple[Embedding, ...]:
        """The embeddings a prompt names, and those that come inside its LoRA files under names of their own."""
        named = [
            embedding.named(use.weights.name)
            for use in recipe.embeddings
            if not use.inside
            for embedding in self.shelf.embeddings(self.spec, use.weights)
        ]
        bundled = [
            embedding
            for use in networks
            if use.kind == "lora"
            for embedding in self.shelf.embeddings(self.spec, use.weights)
        ]
        return (*named, *bundled)

    def warn(self, group: Sequence[int], sentences: Iterable[str]) -> None:
        for position in group:
            self._warnings.setdefault(position, []).extend(sentences)

    def warnings_of(self, position: int) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._warnings.get(position, ())))

    def _hires_upscaler(self) -> Upscaler | None:
        hires = self.recipes[0].hires
        if hires is None or not hires.upscaler or hires.upscaler == "None":
            return None
        return self.upscaler(hires.upscaler, hires.upscaler_weights)

    def upscaler(self, name: str, weights: Weights | None) -> Upscaler:
        network = self.shelf.upscaler(self.spec, weights) if weights else None
        return upscaler_of(name, network, self.recipes[0].settings, self.watch.should_stop)

    def moved(self, group: Sequence[int], distances: np.ndarray) -> None:
        self._distances |= dict(zip(group, distances, strict=True))

    def finished(self, position: int, pixels: np.ndarray) -> tuple[Picture, list[Attachment]]:
        """What a decoded picture becomes: uint8, shape (height, width, 3)."""
        maps = [one for unit in self._units.get(position, ()) for one in unit.attachments()]
        if position in self._prepared:
            picture, attachments = self._prepared[position].finish(pixels, self._distances.get(position))
            return picture, [*attachments, *maps]
        height, width, _ = pixels.shape
        return Picture(width, height, pixels.tobytes()), maps


def map_seed(recipe: Recipe) -> int:
    """Of control modules that draw.

    QUIRK(sd-webui-controlnet 1.1.455): the sum of both seeds, of which an unnamed variation's is the image's own.
    """
    return (recipe.seed + (recipe.subseed if recipe.subseed_strength else recipe.seed)) & 0xFFFFFFFF


def cropped(latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The middle; what is left over goes first from the bottom and the right."""
    top, left = (latents.shape[2] - height) // 2, (latents.shape[3] - width) // 2
    return latents[:, :, top : top + height, left : left + width]


@dataclass(frozen=True, slots=True)
class _Finished:
    """Where a pass ended."""

    latents: torch.Tensor
    """Shape (images, channels, height, width)."""
    checkpoint: Checkpoint
    """What ran last, and so decodes: the refiner once it took over."""


class _Pass:
    """One run through the denoiser of images that go together."""

    def __init__(
        self,
        drawing: Drawing,
        group: list[int],
        plan: PassPlan,
        loaded: LoadedCheckpoint,
        networks: tuple[NetworkUse, ...],
    ) -> None:
        self.drawing = drawing
        self.group = group
        self.recipes = [drawing.recipes[position] for position in group]
        self.recipe = self.recipes[0]
        self.plan = plan
        self.loaded = loaded
        self.networks = networks
        self.solver = SOLVERS[plan.sampler.name]
        self.device = drawing.shelf.device
        self.watch = drawing.watch
        self._open = ExitStack()
        self._concat: torch.Tensor | None = None
        self._blend: Blend | None = None
        self._control: PassControl | None = None

    def _range(self) -> Range:
        checkpoint = self.loaded.checkpoint
        return Range(
            sampler=self.plan.sampler,
            schedule=self.plan.schedule,
            steps=self.plan.steps,
            levels=self._levels(self.loaded),
            family=checkpoint.family,
            settings=self.recipe.settings,
        )

    # --- three ways to begin -----------------------------------------------------------------------------------------

    def from_noise(self) -> _Finished | None:
        noise = self._noise()
        self._concat = self._concat_without_picture()
        start = begin_from_noise(noise.first.to(self.device), self._range())
        return self._run(start, noise)

    def from_latents(self, latents: torch.Tensor) -> _Finished | None:
        """The hires pass: noise of the same seeds at the new size, all of its steps."""
        latents = cropped(latents, self.plan.latent_height, self.plan.latent_width)
        noise = self._noise()
        self._concat = self._concat_without_picture()
        start = begin_from_latents(
            latents, noise.first.to(self.device), self._range(), strength=self.recipe.strength, all_steps=True
        )
        return self._run(start, noise)

    def from_pictures(self, prepared: Sequence[Prepared]) -> _Finished | None:
        given = self.recipe.img2img
        assert given is not None
        noise = self._noise()
        with tiled((self.loaded.checkpoint.vae,), on=self.recipe.tiling):
            begin = given_latents(
                prepared,
                self.loaded.checkpoint,
                self.drawing.pictures,
                vae_key=self._vae_key,
                fill=given.inpaint.fill if given.inpaint else ORIGINAL,
                noise=noise.fill,
            )
        self._concat = begin.concat
        self._blend = begin.blend(given.inpaint, before=self.solver.prediction == "timestep")
        first = (
            self._reconstructed(begin.latents, noise, given.reconstruction)
            if given.reconstruction
            else noise.first.to(self.device) * given.noise_multiplier
        )
        if first is None:
            return None
        start = begin_from_latents(
            begin.latents,
            first,
            self._range(),
            strength=self.recipe.strength,
            all_steps=self.recipe.settings.img2img_fix_steps,
        )
        finished = self._run(start, noise)
        if finished and given.inpaint and given.inpaint.soft:
            self.drawing.moved(self.group, distances(finished.latents, begin.latents))
        return finished

    def _reconstructed(self, latents: torch.Tensor, noise: PassNoise, asked: Reconstruction) -> torch.Tensor | None:
        """What to add to the latents in place of random noise: all of it leads back to them."""
        checkpoint, watch = self.loaded.checkpoint, self.watch
        levels = NoiseLevels(alphas_for(checkpoint.alphas_cumprod, self.recipe.settings))
        whole = asked.steps + self.plan.steps

        def begin_step(done: int) -> bool:
            watch.on_step(done, whole)
            return not watch.should_stop()

        with self._open:
            self._install(self.loaded)
            network = ReversedPrediction(UNet(checkpoint.unet), levels, checkpoint.prediction)
            steering = Steering(
                cfg_scales=(asked.cfg_scale,) * len(self.group),
                total_calls=asked.steps,
                concat=self._concat,
                rows_per_call=EXACT_ROWS if self.recipe.exact else None,
            )
            prompts = replace(self._prompts_of(self.recipe), prompt=asked.prompt, negative_prompt=asked.negative_prompt)
            guided = GuidedDenoiser(network, [self._encoded(prompts)] * len(self.group), steering)
            found = noise_behind(latents, asked, levels, guided, begin_step)
            self._count(guided)
        if found is None:
            return None
        self.watch = replace(watch, on_step=lambda done, _: watch.on_step(asked.steps + done, whole))
        together = mixed(found, noise.first.to(self.device), asked.randomness)
        # QUIRK(A1111 1.10): the generators have not been asked yet, so an ancestral step draws what begins an ordinary pass.
        noise.begin_again()
        return together - latents / levels.sigma_max

    @property
    def _vae_key(self) -> str:
        return f"{self.loaded.key} {self.recipe.vae} {self.recipe.tiling}"

    def _concat_without_picture(self) -> torch.Tensor | None:
        return concat_without_picture(
            self.loaded.checkpoint,
            self.drawing.pictures,
            vae_key=self._vae_key,
            width=self.plan.picture_width,
            height=self.plan.picture_height,
            images=len(self.group),
        )

    # --- sampling ----------------------------------------------------------------------------------------------------

    def _run(self, start: Start, noise: PassNoise) -> _Finished | None:
        with self._open:
            self._install(self.loaded)
            self._begin_control()
            guided = GuidedDenoiser(
                self._network(self.loaded), self._conditionings(), self._steering(start), self._refiner_switch()
            )
            draws = (
                noise.brownian(start.all_visits, self.device)
                if self.plan.sampler.brownian
                else noise.ancestral(self.device)
            )
            latents = denoise(self.solver, self._solver_run(start, guided, draws), guided, self.watch, self._preview)
            self._count(guided)
            if latents is not None and self._blend:
                latents = self._blend(latents, None)
        return None if latents is None else _Finished(latents, self.loaded.checkpoint)

    def _count(self, guided: GuidedDenoiser) -> None:
        self.drawing.image_calls += guided.calls * len(self.group)

    def _begin_control(self) -> None:
        """Read every unit's map and keep it for the pass."""
        prepared, checkpoint = self.drawing.units(self.group), self.loaded.checkpoint
        generators = [torch.Generator("cpu").manual_seed(recipe.seed) for recipe in self.recipes]
        units: list[UnitOfPass] = []
        if networks := self._control_networks(self.loaded) if prepared else None:
            units = [
                self._unit_of_pass(index, shown, network, generators)
                for index, (shown, network) in enumerate(zip(prepared, networks, strict=True))
            ]
        alphas = alphas_for(checkpoint.alphas_cumprod, self.recipe.settings)
        control = pass_control(units, checkpoint, alphas, generators, exact=self.recipe.exact)
        self._control = self._open.enter_context(control)

    def _control_networks(self, loaded: LoadedCheckpoint) -> list[ControlNetwork | None] | None:
        """One per unit; None where control does not go with a checkpoint that comes second.

        With the first one it does, else the images had failed already. A1111 loads a checkpoint of the same configuration into the
        network that has the extension's hooks, and any other into a new one, which has none.
        """
        try:
            if loaded.checkpoint.family != self.drawing.family:
                raise ControlNetworkError(f"{loaded.checkpoint.family} is another family than {self.drawing.family}.")
            return [self.drawing.control_network(unit, loaded) for unit in self.recipe.control]
        except ControlNetworkError as error:
            self.drawing.warn(self.group, [f"Control ends where another checkpoint takes over: {error}"])
            return None

    def _unit_of_pass(
        self,
        index: int,
        prepared: Sequence[PreparedUnit],
        network: ControlNetwork | None,
        generators: Sequence[torch.Generator],
    ) -> UnitOfPass:
        regions = [region_of(recipe.control[index], self.drawing.spec.path_of) for recipe in self.recipes]
        return unit_of_pass(
            prepared,
            regions,
            network,
            self.loaded.checkpoint,
            generators,
            hires=self.plan.hires,
            alone=self.recipe.hires is None,
        )

    def _take_control_along(self, refined: LoadedCheckpoint) -> None:
        if self._control and self._control_networks(refined) is not None:
            self._control.follow(refined.checkpoint.unet)
        else:
            self._control = None

    def _solver_run(self, start: Start, guided: GuidedDenoiser, draws: Noise) -> SolverRun:
        recipe, settings = self.recipe, self.recipe.settings
        return SolverRun(
            latents=start.latents,
            visits=start.visits,
            denoiser=guided,
            noise=draws,
            levels=self._levels(self.loaded),
            steps=start.steps,
            eta=self.solver.default_eta if recipe.eta is None else recipe.eta,
            s_churn=settings.s_churn or recipe.s_churn,
            s_tmin=settings.s_tmin or recipe.s_tmin,
            s_tmax=settings.s_tmax or recipe.s_tmax or inf,
            s_noise=settings.s_noise if settings.s_noise != 1.0 else recipe.s_noise,
            inside=start.inside,
            settings=settings,
        )

    def _steering(self, start: Start) -> Steering:
        return Steering(
            cfg_scales=tuple(recipe.cfg_scale for recipe in self.recipes),
            total_calls=start.steps * 2 if self.plan.sampler.second_order else start.steps,
            settings=self.recipe.settings,
            cfg_plus_plus=self.solver.cfg_plus_plus,
            image_cfg_scale=self._image_cfg_scale,
            concat=self._concat,
            blend=self._blend,
            timesteps=self.solver.prediction == "timestep",
            on_call=partial(self._control.move_to, steps=start.steps) if self._control else None,
            rows_per_call=EXACT_ROWS if self.recipe.exact else None,
        )

    @property
    def _image_cfg_scale(self) -> float | None:
        """Only checkpoints that edit have one."""
        edits = self.loaded.checkpoint.unet.config.in_channels == EDITING_CHANNELS
        return self.recipe.img2img.image_cfg_scale if edits and self.recipe.img2img else None

    def _levels(self, loaded: LoadedCheckpoint) -> NoiseLevels:
        alphas = alphas_for(loaded.checkpoint.alphas_cumprod, self.recipe.settings)
        return LcmNoiseLevels(alphas) if self.solver.prediction == "lcm" else NoiseLevels(alphas)

    def _noise(self) -> PassNoise:
        channels = self.loaded.checkpoint.vae.config.latent_channels
        return PassNoise(self.recipes, (channels, self.plan.latent_height, self.plan.latent_width))

    def _network(self, loaded: LoadedCheckpoint) -> Network:
        """The checkpoint's UNet in the terms of the solver."""
        unet: Denoiser = UNet(loaded.checkpoint.unet, self.drawing.compiled if self._is_plain else None)
        if self._control:
            unet = ControlledUNet(UNet(loaded.checkpoint.unet), self._control)
        levels = self._levels(loaded)
        match self.solver.prediction:
            case "sigma":
                return SigmaPrediction(unet, levels, loaded.checkpoint.prediction)
            case "timestep":
                return NoisePrediction(unet, levels, loaded.checkpoint.prediction)
            case "lcm":
                assert isinstance(levels, LcmNoiseLevels)
                return LcmPrediction(unet, levels)

    @property
    def _is_plain(self) -> bool:
        """Nothing hooks into the network or wraps its edges. Exact mode keeps to one kind of kernels (X1)."""
        hypernetworks = any(use.kind == "hypernetwork" for use in self.networks)
        hooked = self._control or self.plan.token_merging_ratio or hypernetworks
        return not (hooked or self.recipe.tiling or self.recipe.exact)

    def _preview(self, latents: torch.Tensor) -> list[Picture]:
        checkpoint = self.loaded.checkpoint
        return previews(checkpoint.vae, latents, latent_scale=checkpoint.latent_scale)

    # --- what a checkpoint is given for the time of the pass ---------------------------------------------------------

    def _install(self, loaded: LoadedCheckpoint) -> None:
        """Merge networks in and switch on what the recipe asks for; undone when the pass ends."""
        drawing = self.drawing
        drawing.warn(self.group, loaded.networks.use(drawing.shelf.active_networks(drawing.spec, self.networks)))
        unet = loaded.checkpoint.unet
        self._open.enter_context(tiled((unet,), on=self.recipe.tiling))
        self._open.enter_context(token_merging(unet, self.plan.token_merging_ratio))

    def _refiner_switch(self) -> RefinerSwitch | None:
        refiner = self.recipe.refiner
        if refiner is None or not self.plan.refined or refiner.checkpoint.sha256 == self.recipe.checkpoint.sha256:
            return None

        def swap() -> tuple[Network, Sequence[Conditioning]]:
            refined = self.drawing.checkpoint(refiner.checkpoint)
            self._take_control_along(refined)
            self.loaded = refined
            self._install(self.loaded)
            return self._network(self.loaded), self._conditionings()

        return RefinerSwitch(refiner.switch_at, self.recipe.settings.refiner_switch_by_sample_steps, swap)

    # --- prompts -----------------------------------------------------------------------------------------------------

    def _conditionings(self) -> list[Conditioning]:
        return [self._encoded(self._prompts_of(recipe)) for recipe in self.recipes]

    def _encoded(self, prompts: PromptRequest) -> Conditioning:
        # What a network changes in the text encoder is part of what its output is remembered by.
        key = f"{self.loaded.key} {self.networks}"
        return self.drawing.prompts.encode(prompts, checkpoint=self.loaded.checkpoint, weights_key=key)

    def _prompts_of(self, recipe: Recipe) -> PromptRequest:
        prompt, negative_prompt = recipe.prompt, recipe.negative_prompt
        if self.plan.hires and recipe.hires:
            prompt, negative_prompt = recipe.hires.prompt or prompt, recipe.hires.negative_prompt or negative_prompt
        return PromptRequest(
            prompt=strip_network_tags(prompt),
            negative_prompt=negative_prompt,
            steps=self.plan.editing_steps,
            first_pass_steps=self.drawing.plan.first.editing_steps if self.plan.hires else None,
            clip_skip=recipe.clip_skip,
            emphasis=recipe.emphasis,
            settings=recipe.settings,
            width=self.plan.width,
            height=self.plan.height,
            embeddings=self.drawing.embeddings_of(recipe, self.networks),
        )
