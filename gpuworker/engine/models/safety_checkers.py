"""The safety checker of Stable Diffusion's publishers: a CLIP that looks at a picture, and the concepts it must not be close to.

Loaded from the one file that the intake made of its folder, in full precision on any device, so that a verdict depends on nothing
but the picture. What is done with a picture that is caught is in ``images.safety``.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig

from gpuworker.contract.safety import CHECKER
from gpuworker.contract.texts import CONFIG
from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.loader import Place, fill
from gpuworker.engine.models.tensor_files import read_metadata, read_separately

# It says that a black picture is returned; here that depends on the team.
logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's pictures, per channel of 0…1."""
VISION = "vision_model."
MOST_CONCEPTS = 10_000


@dataclass(frozen=True, slots=True)
class SafetyChecker:
    model: Any
    """``StableDiffusionSafetyChecker``."""
    side: int
    """Pixels of the square it looks at."""

    @property
    def size_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @torch.inference_mode()
    def catches(self, picture: Image.Image) -> bool:
        """Whether it is close to a concept; every picture is looked at alone, so that none depends on its neighbours."""
        values = (np.asarray(self._square(picture), dtype=np.float32) / 255.0 - MEAN) / DEVIATION
        seen = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]
        _, caught = self.model(clip_input=seen.to(self.model.device), images=[np.zeros(1)])
        return bool(caught[0])

    def _square(self, picture: Image.Image) -> Image.Image:
        """As CLIP's own processor cuts: the short side to ``side``, then the middle."""
        width, height = picture.size
        factor = self.side / min(width, height)
        large = picture.convert("RGB").resize(
            (max(self.side, int(width * factor)), max(self.side, int(height * factor))), Image.Resampling.BICUBIC
        )
        left, top = (large.width - self.side) // 2, (large.height - self.side) // 2
        return large.crop((left, top, left + self.side, top + self.side))


def load_safety_checker(path: Path, *, device: torch.device) -> SafetyChecker:
    """Raises: CheckpointError: The file is damaged or no safety checker."""
    tensors = read_separately(path)
    try:
        config: Any = CLIPConfig.from_dict(json.loads(read_metadata(path)[CONFIG]))
        side = int(config.vision_config.image_size)
        model: Any = StableDiffusionSafetyChecker(config)
    except Exception as error:  # transformers checks configurations by errors of many kinds
        raise CheckpointError(f"The configuration of {path.name} cannot be used: {error}") from error
    for name in ("concept_embeds", "special_care_embeds"):
        _give_room(model, name, tensors)
    names = {name: _in_file(name, tensors) for name in model.state_dict()}
    fill(model, tensors, names, "safety checker", CHECKER, Place(device, torch.float32))
    model.to(device)  # what is numbered, not learned
    return SafetyChecker(model, side)


def _give_room(model: Any, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """The class has 17 concepts and 3 that call for care; a file may have others."""
    if name not in tensors or tensors[name].dim() != 2 or not 0 < len(tensors[name]) <= MOST_CONCEPTS:
        raise CheckpointError(f"The safety checker's {name} is no list of concepts.", family=CHECKER)
    count = len(tensors[name])
    width = model.config.projection_dim
    setattr(model, name, torch.nn.Parameter(torch.ones(count, width), requires_grad=False))
    setattr(model, f"{name}_weights", torch.nn.Parameter(torch.full((count,), math.inf), requires_grad=False))


def _in_file(name: str, tensors: dict[str, torch.Tensor]) -> str:
    """Published files have the vision model inside another of that name."""
    return VISION + name if name.startswith(VISION) and VISION + name in tensors else name
