"""RenderRequest, the one canonical form: frozen, validated, every default filled in. Every door produces it.

Doors translate their own field names and defaults first; what arrives here is checked once, and whatever passes here can
be rendered. No database: the checkpoint is looked up in ``submission``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from django.conf import settings

from common.errors import FieldError, InvalidRequestError
from gpuworker.contract.samplers import SAMPLERS, SCHEDULES
from renderjobs.choices import JobKind

EMPHASIS_MODES = ("Original", "No norm", "Ignore", "None")
SEED_RANGE = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderRequest:
    """What was asked for, in A1111's words. Seeds may still be -1 (random); they are resolved when images are made."""

    kind: str = JobKind.TXT2IMG
    checkpoint: str = ""
    """Name as the caller wrote it; empty is the installation's default."""
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = -1
    subseed: int = -1
    subseed_strength: float = 0.0
    seed_resize_from_w: int = -1
    seed_resize_from_h: int = -1
    sampler: str = "Euler"
    """A1111 sampler name without a schedule suffix."""
    schedule: str = "Automatic"
    """A1111 scheduler label."""
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 20
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    tiling: bool = False
    clip_skip: int = 1
    eta: float | None = None
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 0.0
    s_noise: float = 1.0
    ensd: int = 0
    emphasis: str = "Original"

    @property
    def images_total(self) -> int:
        return self.n_iter * self.batch_size

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RenderRequest:
        return cls(**data)

    @classmethod
    def build(cls, values: Mapping[str, Any], *, names: Mapping[str, str] | None = None) -> RenderRequest:
        """Check every value and fill in the defaults.

        Args:
            values: Canonical field name → value; None means the default.
            names: Canonical name → the name the caller used, for errors.
        Raises:
            InvalidRequestError: With one entry for every wrong field.
        """
        names = names or {}
        given = {name: value for name, value in values.items() if value is not None}
        errors: list[FieldError] = []
        checked: dict[str, Any] = {}
        for name, check in CHECKS.items():
            if name not in given:
                continue
            try:
                checked[name] = check(given[name])
            except ValueError as error:
                errors.append(FieldError(names.get(name, name), f"{names.get(name, name)} {error}", given[name]))
        unknown = set(given) - set(CHECKS)
        assert not unknown, f"A door passed unknown canonical fields: {sorted(unknown)}."
        if not errors:
            request = cls(**checked)
            errors = list(cross_checks(request, names))
        if errors:
            raise InvalidRequestError(errors)
        return request


def cross_checks(request: RenderRequest, names: Mapping[str, str]) -> list[FieldError]:
    """What no single field shows."""
    errors = []
    if request.width * request.height > settings.MAX_PIXELS:
        field = names.get("width", "width")
        message = f"A picture of {request.width} x {request.height} pixels exceeds the limit of {settings.MAX_PIXELS}."
        errors.append(FieldError(field, message, request.width))
    if request.images_total > settings.MAX_IMAGES_PER_JOB:
        field = names.get("n_iter", "n_iter")
        message = (
            f"n_iter x batch_size is {request.images_total}; a job has at most {settings.MAX_IMAGES_PER_JOB} images."
        )
        errors.append(FieldError(field, message, request.n_iter))
    return errors


def a_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is {shown(value)}; a text is accepted.")
    if len(value.encode("utf-8", "surrogatepass")) > settings.MAX_PROMPT_BYTES:
        raise ValueError(f"is longer than {settings.MAX_PROMPT_BYTES} bytes.")
    if "\x00" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("holds a character that is not text (NUL or half a surrogate pair).")
    return value


def whole(minimum: int, maximum: int) -> Any:
    def check(value: Any) -> int:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or value != value
            or int_or_none(value) is None
        ):
            raise ValueError(f"is {shown(value)}; a whole number is accepted.")
        if not minimum <= value <= maximum:
            raise ValueError(f"is {shown(value)}; accepted are {minimum} to {maximum}.")
        return int(value)

    return check


def int_or_none(value: float) -> int | None:
    if isinstance(value, float) and (math.isinf(value) or value != int(value)):
        return None
    return int(value)


def real(minimum: float, maximum: float) -> Any:
    def check(value: Any) -> float:
        # Only floats are asked whether they are finite: an int too large to be one would raise OverflowError.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"is {shown(value)}; a number is accepted.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"is {shown(value)}; a number is accepted.")
        if not minimum <= value <= maximum:
            raise ValueError(f"is {shown(value)}; accepted are {minimum} to {maximum}.")
        return float(value)

    return check


def a_boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"is {shown(value)}; true or false is accepted.")
    return value


def one_of(accepted: tuple[str, ...]) -> Any:
    def check(value: Any) -> str:
        if value not in accepted:
            raise ValueError(f"is {shown(value)}; accepted are {', '.join(accepted)}.")
        return str(value)

    return check


def shown(value: Any) -> str:
    """The value as the caller wrote it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"


CHECKS: dict[str, Any] = {
    "kind": one_of(tuple(JobKind.values)),
    "checkpoint": a_text,
    "prompt": a_text,
    "negative_prompt": a_text,
    "seed": whole(*SEED_RANGE),
    "subseed": whole(*SEED_RANGE),
    "subseed_strength": real(0, 1),
    "seed_resize_from_w": whole(-1, settings.MAX_SIDE_PX),
    "seed_resize_from_h": whole(-1, settings.MAX_SIDE_PX),
    "sampler": one_of(tuple(sampler.name for sampler in SAMPLERS if sampler.implemented)),
    "schedule": one_of(tuple(schedule.label for schedule in SCHEDULES)),
    "batch_size": whole(1, settings.MAX_BATCH_SIZE),
    "n_iter": whole(1, settings.MAX_IMAGES_PER_JOB),
    "steps": whole(1, settings.MAX_STEPS),
    "cfg_scale": real(-100, 100),
    "width": whole(settings.MIN_SIDE_PX, settings.MAX_SIDE_PX),
    "height": whole(settings.MIN_SIDE_PX, settings.MAX_SIDE_PX),
    "tiling": a_boolean,
    "clip_skip": whole(1, 12),
    "eta": real(0, 10),
    "s_churn": real(0, 100),
    "s_tmin": real(0, 1000),
    "s_tmax": real(0, 1000),
    "s_noise": real(0, 10),
    "ensd": whole(-(2**31), 2**31 - 1),
    "emphasis": one_of(EMPHASIS_MODES),
}
assert set(CHECKS) == {field.name for field in fields(RenderRequest)}
