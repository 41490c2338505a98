"""One guided denoiser call: which network rows it takes, what each is conditioned on, how they are combined.

Solvers see a callable (latents, level) → prediction. Levels are CPU scalars, so nothing here waits for the device.

Source: ``CFGDenoiser``, A1111 1.10 ``modules/sd_samplers_cfg_denoiser.py``; Karras et al. 2022 for the scalings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from gpuworker.contract import Settings
from gpuworker.engine.compiling import CompiledShapes
from gpuworker.engine.models.precision import type_of
from gpuworker.engine.prompts.encoder import Cond, Conditioning
from gpuworker.engine.sampling.schedules import LcmNoiseLevels, NoiseLevels

CFG_PLUS_PLUS_DIVISOR = 12.5
LCM_SIGMA_DATA = 0.5
LCM_TIMESTEP_SCALE = 10.0
Level = torch.Tensor
"""A sigma or a timestep: a float32 value on the CPU, shape ()."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What the network is given beside latents: one entry or one slice per row."""

    images: tuple[int, ...]
    """Which image of the pass each row belongs to."""
    negative: tuple[bool, ...]
    context: torch.Tensor
    """Shape (rows, tokens, width)."""
    vector: torch.Tensor | None = None
    """Shape (rows, adm): SDXL's pooled text and sizes."""
    concat: torch.Tensor | None = None
    """Shape (rows, channels, height, width): what inpainting and editing checkpoints see beside the latents."""
    blind: tuple[bool, ...] = ()
    """Whether the row sees no picture beside the latents; empty is none."""
    places: tuple[tuple[int, int], ...] = ()
    """Which of its image's network calls each row would be in if that image were alone, and where in it."""
    own_calls: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Image → rows of each of these calls, also of rows that change nothing and are left out."""


class Blend(Protocol):
    """Keeps what an inpainting mask protects."""

    @property
    def before(self) -> bool:
        """Blend what goes into the network (timestep samplers) instead of what comes out."""
        ...

    def __call__(self, latents: torch.Tensor, level: Level | None) -> torch.Tensor:
        """``level`` is None for the finished latents."""
        ...


class Network(Protocol):
    """The denoiser without guidance, in the terms of one sampler family."""

    def __call__(self, latents: torch.Tensor, level: Level, rows: Rows) -> torch.Tensor: ...


# --- the network in the terms of each sampler family -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UNet:
    """The network as it was trained: timestep in, noise or velocity out."""

    unet: Any
    """``UNet2DConditionModel``."""
    compiled: CompiledShapes | None = None
    """Where the network is as it was loaded, and nothing is added to it."""

    def __call__(self, latents: torch.Tensor, timestep: Level, rows: Rows, **added: Any) -> torch.Tensor:
        """``added``: residuals, as ``UNet2DConditionModel`` names them."""
        # new_full writes a number the device is told, where a tensor made here would be a copy it must wait for.
        timesteps = latents.new_full((len(latents),), float(timestep))
        dtype = type_of(self.unet)
        inputs = latents if rows.concat is None else torch.cat([latents, rows.concat.to(latents.dtype)], dim=1)
        labels = None if rows.vector is None else rows.vector.to(dtype)
        given = inputs.to(dtype), timesteps, rows.context.to(dtype)
        if self.compiled:
            predicted = self.compiled(self.unet, *given, labels)
        else:
            predicted = self.unet(*given, class_labels=labels, return_dict=False, **added)[0]
        return predicted.to(latents.dtype)


class Denoiser(Protocol):
    """``UNet``, or what stands in its place."""

    def __call__(self, latents: torch.Tensor, timestep: Level, rows: Rows) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class NoisePrediction:
    """Level is a timestep; the prediction is the noise."""

    network: Denoiser
    levels: NoiseLevels
    predicts: Literal["eps", "v"] = "eps"

    def __call__(self, latents: torch.Tensor, level: Level, rows: Rows) -> torch.Tensor:
        predicted = self.network(latents, level, rows)
        if self.predicts == "eps":
            return predicted
        alpha = self.levels.alphas_cumprod[int(level)]
        return alpha**0.5 * predicted + (1 - alpha) ** 0.5 * latents


@dataclass(frozen=True, slots=True)
class SigmaPrediction:
    """Level is a sigma; the prediction is the picture without noise. Timesteps are fractional."""

    network: Denoiser
    levels: NoiseLevels
    predicts: Literal["eps", "v"] = "eps"

    def __call__(self, latents: torch.Tensor, level: Level, rows: Rows) -> torch.Tensor:
        scaled = latents * (1 / (level**2 + 1.0) ** 0.5)
        predicted = self.network(scaled, self.levels.timestep(level), rows)
        if self.predicts == "eps":
            return latents + predicted * -level
        return predicted * (-level / (level**2 + 1.0) ** 0.5) + latents * (1 / (level**2 + 1.0))


@dataclass(frozen=True, slots=True)
class LcmPrediction:
    """As ``SigmaPrediction``, with the boundary conditions of a consistency model.

    QUIRK(A1111 1.10): what a velocity checkpoint predicts is taken for noise.
    """

    network: Denoiser
    levels: LcmNoiseLevels

    def __call__(self, latents: torch.Tensor, level: Level, rows: Rows) -> torch.Tensor:
        denoised = SigmaPrediction(self.network, self.levels)(latents, level, rows)
        timestep = self.levels.timestep(level) * LCM_TIMESTEP_SCALE
        keep = LCM_SIGMA_DATA**2 / (timestep**2 + LCM_SIGMA_DATA**2)
        change = timestep / (timestep**2 + LCM_SIGMA_DATA**2) ** 0.5
        return change * denoised + keep * latents


# --- guidance --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mask:
    """A1111's plain inpainting: protected latents come from the picture."""

    picture: torch.Tensor
    """Latents to keep, shape (images, channels, height, width)."""
    redrawn: torch.Tensor
    """1 where the picture is drawn anew, shape (images, 1 or channels, height, width)."""
    before: bool

    def __call__(self, latents: torch.Tensor, level: Level | None) -> torch.Tensor:
        return latents * self.redrawn + self.picture * (1 - self.redrawn)


@dataclass(frozen=True, slots=True)
class Steering:
    """Everything that takes part in guidance beside the prompts."""

    cfg_scales: tuple[float, ...]
    """One per image."""
    total_calls: int
    """Denoiser calls as A1111 counts them: steps, twice as many for second-order samplers."""
    settings: Settings = field(default_factory=Settings)
    cfg_plus_plus: bool = False
    image_cfg_scale: float | None = None
    """Of an instruct-pix2pix checkpoint; None and 1 guide by text alone."""
    concat: torch.Tensor | None = None
    """Shape (images, channels, height, width)."""
    blend: Blend | None = None
    timesteps: bool = False
    """Levels are timesteps."""
    on_call: Callable[[int], None] | None = None
    """Told before every call how many steps lie behind, as A1111's progress bar counts them."""
    rows_per_call: int | None = None
    """Every network call holds exactly so many rows, padded at the end: then a row's result cannot depend on its companions."""


Swap = Callable[[], tuple[Network, Sequence[Conditioning]]]


@dataclass(slots=True)
class RefinerSwitch:
    """When the refiner takes over, and how to get it; done once."""

    at: float | None
    by_steps: bool
    swap: Swap
    done: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    """One network row of one image."""

    image: int
    cond: Cond
    scale: float
    """Of its difference to the image's unconditional row."""
    negative: bool = False
    blind: bool = False
    """Sees no picture beside the latents: the third row of picture editing."""


class GuidedDenoiser:
    """Classifier-free guidance over all images of a pass; counts its calls, which prompt editing follows."""

    def __init__(
        self,
        network: Network,
        conditionings: Sequence[Conditioning],
        steering: Steering,
        refiner: RefinerSwitch | None = None,
    ) -> None:
        self._network = network
        self._conditionings = conditionings
        self._steering = steering
        self._refiner = refiner
        divisor = CFG_PLUS_PLUS_DIVISOR if steering.cfg_plus_plus else 1.0
        self._scales = [scale / divisor for scale in steering.cfg_scales]
        self._edits = steering.image_cfg_scale is not None and steering.image_cfg_scale != 1.0
        self.calls = 0
        """So far."""
        self._step = 0
        self._calls_in_step = 0
        self._batch: _Batch | None = None
        self.last_unconditional = torch.empty(0)
        """The unguided prediction of the last call, which CFG++ steps along; empty where guidance needed none."""
        self.last_prediction = torch.empty(0)
        """Of the last call; previews are made of it."""

    def begin_step(self, step: int) -> None:
        self._step, self._calls_in_step = step, 0

    def __call__(self, latents: torch.Tensor, level: Level) -> torch.Tensor:
        self._refine(level)
        steering = self._steering
        if steering.on_call:
            steering.on_call(self._shown_step)
        if steering.blend and steering.blend.before:
            latents = steering.blend(latents, level)
        prediction = self._guided(latents, level)
        if steering.blend and not steering.blend.before:
            prediction = steering.blend(prediction, level)
        self.calls += 1
        self._calls_in_step += 1
        self.last_prediction = prediction
        return prediction

    @property
    def _shown_step(self) -> int:
        """QUIRK(A1111 1.10): the bar moves to a step after that step's first call."""
        return max(self._step - (self._calls_in_step == 0), 0)

    def _refine(self, level: Level) -> None:
        refiner = self._refiner
        if refiner is None or refiner.done:
            return
        if refiner.at is not None and self._completed(refiner, level) < refiner.at:
            return
        refiner.done = True
        self._network, self._conditionings = refiner.swap()
        self._batch = None

    def _completed(self, refiner: RefinerSwitch, level: Level) -> float:
        """The share of the way that lies behind: of the noise, or of the calls."""
        if refiner.by_steps:
            return self.calls / self._steering.total_calls
        if self._steering.timesteps:
            return (999 - int(level)) / 1000
        levels: NoiseLevels = self._network.levels  # type: ignore[attr-defined]
        return (999 - int((levels.sigmas - level).abs().argmin())) / 1000

    def _guided(self, latents: torch.Tensor, level: Level) -> torch.Tensor:
        if self._edits:
            return self._edited(latents, level)
        skipped = self._skips_unconditional(level)
        positive, negative = self._rows()
        scales = [1.0 if skipped else scale for scale in self._scales]
        positive = [_Row(row.image, row.cond, row.scale * scales[row.image]) for row in positive]
        # The unconditional half changes nothing but a rounding where all of the guidance is one condition at scale 1 (H7).
        guided = not skipped and (
            self._steering.cfg_plus_plus
            or self._steering.rows_per_call is not None
            or any(row.scale != 1.0 for row in positive)
            or len(positive) > len(negative)
        )
        left_out = [] if guided or skipped else negative
        predictions = self._predict([*positive, *negative] if guided else positive, latents, level, left_out)
        if skipped:
            predictions = torch.cat([predictions, _first_of_each_image(positive, predictions)])
        elif not guided:
            self.last_unconditional = predictions[len(positive) :]
            return predictions
        self.last_unconditional = predictions[len(positive) :]
        return _combined(positive, predictions, None if skipped else self._batch)

    def _skips_unconditional(self, level: Level) -> bool:
        """Whether this call goes without the negative prompt, as settings of A1111 may ask.

        QUIRK(A1111 1.10): the sigma of NGMS is compared with a timestep where the sampler walks over those.
        """
        settings = self._steering.settings
        if settings.skip_early_cond and self.calls / self._steering.total_calls <= settings.skip_early_cond:
            return True
        turn = bool(self.calls % 2) or settings.s_min_uncond_all
        return turn and settings.s_min_uncond > 0 and float(level) < settings.s_min_uncond

    def _rows(self) -> tuple[list[_Row], list[_Row]]:
        """Rows at their weight within the image's guidance; the scales come later."""
        positive: list[_Row] = []
        for image, conditioning in enumerate(self._conditionings):
            conds = of_one_length([track.at(self.calls) for track in conditioning.positive])
            positive += [
                _Row(image, cond, track.weight) for track, cond in zip(conditioning.positive, conds, strict=True)
            ]
        negative = [
            _Row(image, item.negative.at(self.calls), 0.0, negative=True)
            for image, item in enumerate(self._conditionings)
        ]
        return positive, negative

    def _edited(self, latents: torch.Tensor, level: Level) -> torch.Tensor:
        """Guidance by text and by picture. Source: Brooks et al. 2023 (InstructPix2Pix), equation 3."""
        positive, negative = self._rows()
        blind = [_Row(row.image, row.cond, 0.0, negative=True, blind=True) for row in negative]
        predictions = self._predict([*positive, *negative, *blind], latents, level)
        by_text, by_picture, by_neither = predictions.chunk(3)
        scale = latents.new_tensor(self._scales).view(-1, 1, 1, 1)
        assert self._steering.image_cfg_scale is not None
        return by_neither + scale * (by_text - by_picture) + self._steering.image_cfg_scale * (by_picture - by_neither)

    def _predict(
        self, rows: list[_Row], latents: torch.Tensor, level: Level, left_out: Sequence[_Row] = ()
    ) -> torch.Tensor:
        if self._batch is None or not self._batch.holds(rows):
            self._batch = _Batch(rows, left_out, self._steering.concat, self._steering.rows_per_call)
        return self._batch.predict(self._network, latents, level)


class _Batch:
    """Rows as the network takes them: together where their contexts are of one length, apart where not."""

    def __init__(
        self, rows: list[_Row], left_out: Sequence[_Row], concat: torch.Tensor | None, rows_per_call: int | None
    ) -> None:
        self._rows = rows
        self._concat = concat
        self._places, self._own_calls = _own_calls([*rows, *left_out])
        self._scales: torch.Tensor | None = None
        self._groups: list[tuple[list[int], Rows]] = []
        for length in dict.fromkeys(row.cond.context.shape[0] for row in rows):
            members = [index for index, row in enumerate(rows) if row.cond.context.shape[0] == length]
            size = rows_per_call or len(members)
            for first in range(0, len(members), size):
                part = members[first : first + size]
                self._groups.append((part, self._taken(part + part[-1:] * (size - len(part)))))

    def _taken(self, members: list[int]) -> Rows:
        rows = [self._rows[index] for index in members]
        vectors = [row.cond.vector for row in rows if row.cond.vector is not None]
        return Rows(
            images=tuple(row.image for row in rows),
            negative=tuple(row.negative for row in rows),
            context=torch.stack([row.cond.context for row in rows]),
            vector=torch.stack(vectors) if vectors else None,
            concat=None if self._concat is None else torch.stack([self._seen(row) for row in rows]),
            blind=tuple(row.blind for row in rows),
            places=tuple(self._places[index] for index in members),
            own_calls=self._own_calls,
        )

    def _seen(self, row: _Row) -> torch.Tensor:
        assert self._concat is not None
        seen = self._concat[row.image]
        return torch.zeros_like(seen) if row.blind else seen

    def holds(self, rows: list[_Row]) -> bool:
        same = (
            old.image == new.image
            and old.cond.context is new.cond.context
            and old.scale == new.scale
            and old.negative == new.negative
            for old, new in zip(self._rows, rows, strict=False)
        )
        return len(rows) == len(self._rows) and all(same)

    def scales(self, like: torch.Tensor) -> torch.Tensor:
        """The rows' scales beside the predictions, copied there once."""
        if self._scales is None:
            self._scales = like.new_tensor([row.scale for row in self._rows]).view(-1, 1, 1, 1)
        return self._scales

    def predict(self, network: Network, latents: torch.Tensor, level: Level) -> torch.Tensor:
        if len(self._groups) == 1:
            rows = self._groups[0][1]
            return network(_at(latents, rows), level, rows)[: len(self._rows)]
        predictions: list[torch.Tensor | None] = [None] * len(self._rows)
        for members, rows in self._groups:
            answers = network(_at(latents, rows), level, rows)
            for index, prediction in zip(members, answers, strict=False):  # padding is left out
                predictions[index] = prediction
        return torch.stack([prediction for prediction in predictions if prediction is not None])


def _own_calls(rows: Sequence[_Row]) -> tuple[list[tuple[int, int]], dict[int, tuple[int, ...]]]:
    """``Rows.places`` and ``Rows.own_calls``: an image alone has a call for each length of its contexts."""
    counts: dict[int, dict[int, int]] = {}
    places = []
    for row in rows:
        own, length = counts.setdefault(row.image, {}), row.cond.context.shape[0]
        own.setdefault(length, 0)
        places.append((list(own).index(length), own[length]))
        own[length] += 1
    return places, {image: tuple(own.values()) for image, own in counts.items()}


def _at(latents: torch.Tensor, rows: Rows) -> torch.Tensor:
    # Indexing with a list would copy it to the device at every call.
    return torch.stack([latents[image] for image in rows.images])


def _combined(positive: list[_Row], predictions: torch.Tensor, batch: _Batch | None) -> torch.Tensor:
    """Source: Liu et al. 2022 (composable diffusion), equation 11."""
    conditional, unconditional = predictions[: len(positive)], predictions[len(positive) :]
    if batch is not None and len(positive) == len(unconditional):
        return unconditional + (conditional - unconditional) * batch.scales(predictions)[: len(positive)]
    guided = unconditional.clone()
    for row, prediction in zip(positive, conditional, strict=True):
        guided[row.image] += (prediction - unconditional[row.image]) * row.scale
    return guided


def _first_of_each_image(positive: list[_Row], predictions: torch.Tensor) -> torch.Tensor:
    """What stands for the unconditional prediction where that is skipped."""
    first: dict[int, int] = {}
    for index, row in enumerate(positive):
        first.setdefault(row.image, index)
    return predictions[list(first.values())]


def of_one_length(conds: list[Cond]) -> list[Cond]:
    """QUIRK(A1111 1.10): the parts of an ``AND`` get one length by repeating their last vector, not by an empty chunk."""
    longest = max(cond.context.shape[0] for cond in conds)
    return [cond if cond.context.shape[0] == longest else _lengthened(cond, longest) for cond in conds]


def _lengthened(cond: Cond, length: int) -> Cond:
    last = cond.context[-1:].expand(length - cond.context.shape[0], -1)
    return Cond(torch.cat([cond.context, last]), cond.vector)
