"""The recipe of one image: every parameter resolved, seed included. Two images with one recipe and one lock are one picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Field names are A1111's where A1111 has one; units are pixels and steps."""

    prompt: str
    negative_prompt: str
    seed: int
    """Resolved: -1 was replaced when the recipe was made."""
    subseed: int
    subseed_strength: float = 0.0
    seed_resize_from_w: int = -1
    seed_resize_from_h: int = -1
    sampler: str
    """A1111 sampler name without a schedule suffix, e.g. ``DPM++ 2M``."""
    schedule: str = "Automatic"
    """A1111 scheduler label as asked for; ``Automatic`` is the sampler's own default."""
    steps: int
    cfg_scale: float
    width: int
    """As asked for; the picture's side is this rounded down to a multiple of 8."""
    height: int
    clip_skip: int = 1
    eta: float | None = None
    """None is the sampler family's default: 1.0 for ancestral and SDE samplers, 0.0 for DDIM."""
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 0.0
    """0 means infinity."""
    s_noise: float = 1.0
    ensd: int = 0
    """eta noise seed delta: added to the seed after the first noise draw."""
    emphasis: str = "Original"
    """``Original``, ``No norm``, ``Ignore`` or ``None``."""
    tiling: bool = False
    checkpoint_sha256: str
    checkpoint_name: str
    """The checkpoint's stem as infotexts show it."""

    @property
    def checkpoint_short_hash(self) -> str:
        return self.checkpoint_sha256[:10]

    @property
    def pass_key(self) -> tuple[Any, ...]:
        """Images of one pass key may be denoised together; prompt, seed and CFG scale may differ."""
        return tuple(getattr(self, name) for name in PASS_FIELDS)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recipe:
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


PASS_FIELDS = (
    "checkpoint_sha256",
    "width",
    "height",
    "steps",
    "sampler",
    "schedule",
    "clip_skip",
    "eta",
    "s_churn",
    "s_tmin",
    "s_tmax",
    "s_noise",
    "emphasis",
    "tiling",
)
"""What every image of one pass has in common."""
