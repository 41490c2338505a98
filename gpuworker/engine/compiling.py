"""Networks compiled for canonical shapes (H6). Every other call runs as the network is, and both are counted.

A compiled call takes the network's weights as they are at the moment: a LoRA that is merged in place, or another checkpoint of the
same build, needs no other graph. What changes a network's structure (hooks, wrapped edges) must not come here. Nothing of a network
is kept.

CUDA graphs are not captured: they could not be tried without a card.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

logger = logging.getLogger(__name__)
LATENT_PX = 8
MAX_GRAPHS = 32
"""Over all networks and shapes; each costs a minute or two when it is first met, and memory for good."""


@dataclass(frozen=True, slots=True)
class CanonicalShape:
    width_px: int
    height_px: int
    images: int

    @classmethod
    def from_text(cls, text: str) -> CanonicalShape:
        """Of ``512x512x8``: width, height, images of a micro-batch.

        Raises:
            ValueError: It is no such text, or a side is no multiple of 8.
        """
        width_px, height_px, images = (int(part) for part in text.split("x"))
        if min(width_px, height_px, images) < 1 or width_px % LATENT_PX or height_px % LATENT_PX:
            raise ValueError(f"{text!r} is no shape.")
        return cls(width_px, height_px, images)

    def takes(self, latents: torch.Tensor) -> bool:
        """Whether a call has these rows: one per image, or two with the unconditional half."""
        rows, _, height, width = latents.shape
        size = (width * LATENT_PX, height * LATENT_PX)
        return size == (self.width_px, self.height_px) and rows in (self.images, 2 * self.images)


class CompiledShapes:
    """One per renderer; used from its rendering thread."""

    def __init__(
        self, shapes: Collection[CanonicalShape] = (), *, backend: Any = "inductor", max_graphs: int = MAX_GRAPHS
    ) -> None:
        """Args: backend: As ``torch.compile`` takes it."""
        self.shapes = frozenset(shapes)
        self.counts: Counter[str] = Counter()
        """Calls by how they ran: ``compiled``, ``eager``; and what went wrong: ``failed``, ``over_limit``."""
        self._max_graphs = max_graphs
        self._graphs: set[tuple[Any, ...]] = set()
        self._eager: set[tuple[Any, ...]] = set()
        """What could not be compiled, or came when there were graphs enough."""
        self._forward: Callable[..., torch.Tensor] | None = None
        if self.shapes:
            # Torch's own limit is per function, and all graphs here are of one.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, max_graphs + 1)
            self._forward = torch.compile(_forward, dynamic=False, backend=backend)

    @property
    def graphs(self) -> int:
        """How many were made, or given up: a pass in which this grows took longer than others will."""
        return len(self._graphs) + len(self._eager)

    def report(self) -> dict[str, int]:
        return {"graphs": len(self._graphs), **self.counts} if self.shapes else {}

    def __call__(
        self,
        network: Any,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        class_labels: torch.Tensor | None,
    ) -> torch.Tensor:
        """What ``UNet2DConditionModel`` predicts.

        Args:
            latents: (rows, channels, height / 8, width / 8) in the network's type, as are the others.
        """
        if self._forward is None or not any(shape.takes(latents) for shape in self.shapes):
            return self._as_it_is(network, latents, timesteps, context, class_labels)
        key = (str(network.config), latents.shape, context.shape, latents.dtype, latents.device.type)
        if key in self._eager or not self._has_room(key):
            return self._as_it_is(network, latents, timesteps, context, class_labels)
        try:
            predicted = self._forward(network, latents, timesteps, context, class_labels)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            logger.exception("A network could not be compiled for %s; it runs uncompiled", tuple(latents.shape))
            self._eager.add(key)
            self.counts["failed"] += 1
            return self._as_it_is(network, latents, timesteps, context, class_labels)
        self._graphs.add(key)
        self.counts["compiled"] += 1
        return predicted

    def _has_room(self, key: tuple[Any, ...]) -> bool:
        if key in self._graphs or len(self._graphs) < self._max_graphs:
            return True
        logger.error("There are %s compiled graphs; %s runs uncompiled", len(self._graphs), tuple(key[1]))
        self._eager.add(key)
        self.counts["over_limit"] += 1
        return False

    def _as_it_is(self, network: Any, *given: Any) -> torch.Tensor:
        self.counts["eager"] += 1
        return _forward(network, *given)


def _forward(
    network: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    context: torch.Tensor,
    class_labels: torch.Tensor | None,
) -> torch.Tensor:
    return network(latents, timesteps, context, class_labels=class_labels, return_dict=False)[0]
