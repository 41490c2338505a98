"""One guided denoiser call: which network rows it takes, what each is conditioned on, how they are combined.

Solvers see a callable (latents, level) → prediction. Levels are CPU scalars, so nothing here waits for the device.

Source: ``CFGDenoiser``, A1111 1.10 ``modules/sd_samplers_cfg_denoiser.py``; Karras et al. 2022 for the scalings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gpuworker.engine.prompts.encoder import Conditioning
from gpuworker.engine.sampling.schedules import LcmNoiseLevels, NoiseLevels

CFG_PLUS_PLUS_DIVISOR = 12.5
LCM_SIGMA_DATA = 0.5
LCM_TIMESTEP_SCALE = 10.0


class Network(Protocol):
    """The denoiser without guidance, in the terms of one sampler family."""

    def __call__(self, latents: torch.Tensor, level: torch.Tensor, context: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class NoisePrediction:
    """Level is a timestep; the prediction is the noise."""

    unet: Any
    """``UNet2DConditionModel``."""

    def __call__(self, latents: torch.Tensor, level: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        # new_full writes a number the device is told, where a tensor made here would be a copy it must wait for.
        timesteps = latents.new_full((len(latents),), float(level))
        return self.unet(latents.to(self.unet.dtype), timesteps, context, return_dict=False)[0].to(latents.dtype)


@dataclass(frozen=True, slots=True)
class SigmaPrediction:
    """Level is a sigma; the prediction is the picture without noise. Timesteps are fractional."""

    noise: NoisePrediction
    levels: NoiseLevels

    def __call__(self, latents: torch.Tensor, level: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        scaled = latents * (1 / (level**2 + 1.0) ** 0.5)
        return latents + self.noise(scaled, self.levels.timestep(level), context) * -level


@dataclass(frozen=True, slots=True)
class LcmPrediction:
    """As ``SigmaPrediction``, with the boundary conditions of a consistency model."""

    noise: NoisePrediction
    levels: LcmNoiseLevels

    def __call__(self, latents: torch.Tensor, level: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        denoised = SigmaPrediction(self.noise, self.levels)(latents, level, context)
        timestep = self.levels.timestep(level) * LCM_TIMESTEP_SCALE
        keep = LCM_SIGMA_DATA**2 / (timestep**2 + LCM_SIGMA_DATA**2)
        change = timestep / (timestep**2 + LCM_SIGMA_DATA**2) ** 0.5
        return change * denoised + keep * latents


@dataclass(frozen=True, slots=True)
class _Row:
    """One network row of one image."""

    image: int
    context: torch.Tensor
    scale: float
    """Of its difference to the image's unconditional row."""


class GuidedDenoiser:
    """Classifier-free guidance over all images of a pass; counts its calls, which prompt editing follows."""

    def __init__(
        self,
        network: Network,
        conditionings: Sequence[Conditioning],
        cfg_scales: Sequence[float],
        *,
        cfg_plus_plus: bool = False,
    ) -> None:
        divisor = CFG_PLUS_PLUS_DIVISOR if cfg_plus_plus else 1.0
        self._network = network
        self._conditionings = conditionings
        self._scales = [scale / divisor for scale in cfg_scales]
        self._calls = 0
        self._batch: _Batch | None = None
        self.last_unconditional = torch.empty(0)
        """The unguided prediction of the last call, which CFG++ steps along; empty where guidance needed none."""
        self._always_unconditional = cfg_plus_plus

    def __call__(self, latents: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        positive, negative = self._rows(self._calls)
        self._calls += 1
        # The unconditional half changes nothing where all of the guidance is one condition at scale 1 (H7).
        guided = (
            self._always_unconditional or any(row.scale != 1.0 for row in positive) or len(positive) > len(negative)
        )
        rows = [*positive, *negative] if guided else positive
        if self._batch is None or not self._batch.holds(rows):
            self._batch = _Batch(rows)
        predictions = self._batch.predict(self._network, latents, level)
        self.last_unconditional = predictions[len(positive) :]
        return self._combined(self._batch, positive, predictions) if guided else predictions

    def _rows(self, call: int) -> tuple[list[_Row], list[_Row]]:
        positive: list[_Row] = []
        for image, (conditioning, scale) in enumerate(zip(self._conditionings, self._scales, strict=True)):
            contexts = _of_one_length([track.at(call) for track in conditioning.positive])
            positive += [
                _Row(image, context, track.weight * scale)
                for track, context in zip(conditioning.positive, contexts, strict=True)
            ]
        negative = [_Row(image, item.negative.at(call), 0.0) for image, item in enumerate(self._conditionings)]
        return positive, negative

    def _combined(self, batch: _Batch, positive: list[_Row], predictions: torch.Tensor) -> torch.Tensor:
        conditional, unconditional = predictions[: len(positive)], predictions[len(positive) :]
        if len(positive) == len(unconditional):
            return unconditional + (conditional - unconditional) * batch.scales(predictions)[: len(positive)]
        guided = unconditional.clone()
        for row, prediction in zip(positive, conditional, strict=True):
            guided[row.image] += (prediction - unconditional[row.image]) * row.scale
        return guided


class _Batch:
    """Rows as the network takes them: together where their contexts are of one length, apart where not."""

    def __init__(self, rows: list[_Row]) -> None:
        self._rows = rows
        lengths = dict.fromkeys(row.context.shape[0] for row in rows)
        self._groups = [self._group(length) for length in lengths]
        self._scales: torch.Tensor | None = None

    def _group(self, length: int) -> tuple[list[int], torch.Tensor]:
        members = [index for index, row in enumerate(self._rows) if row.context.shape[0] == length]
        return members, torch.stack([self._rows[index].context for index in members])

    def holds(self, rows: list[_Row]) -> bool:
        same = (
            old.image == new.image and old.context is new.context for old, new in zip(self._rows, rows, strict=False)
        )
        return len(rows) == len(self._rows) and all(same)

    def scales(self, like: torch.Tensor) -> torch.Tensor:
        """The rows' scales beside the predictions, copied there once."""
        if self._scales is None:
            self._scales = like.new_tensor([row.scale for row in self._rows]).view(-1, 1, 1, 1)
        return self._scales

    def predict(self, network: Network, latents: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        predictions: list[torch.Tensor | None] = [None] * len(self._rows)
        for members, contexts in self._groups:
            rows = torch.stack([latents[self._rows[index].image] for index in members])
            for index, prediction in zip(members, network(rows, level, contexts), strict=True):
                predictions[index] = prediction
        return torch.stack([prediction for prediction in predictions if prediction is not None])


def _of_one_length(contexts: list[torch.Tensor]) -> list[torch.Tensor]:
    """QUIRK(A1111 1.10): the parts of an ``AND`` get one length by repeating their last vector, not by an empty chunk."""
    longest = max(context.shape[0] for context in contexts)
    return [
        context
        if context.shape[0] == longest
        else torch.cat([context, context[-1:].expand(longest - context.shape[0], -1)])
        for context in contexts
    ]
