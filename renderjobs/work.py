"""How much work one image of a request is, in a unit that needs no clock: pixels times denoiser steps. Pure.

It is what prices per megapixel-step count and what estimates of time are scaled by.
"""

from __future__ import annotations

from renderjobs.request import RenderRequest

MOST_STRENGTH = 0.999
"""A1111 never runs all steps of img2img (``setup_img2img_steps`` of modules/sd_samplers_common.py)."""


def pixel_steps(request: RenderRequest) -> int:
    """Of one image: its first pass and, where it has one, the second; an enlargement or a control map is one step over what
    comes out."""
    if request.extras or request.detect:
        width, height = request.canvas
        return width * height
    first = request.width * request.height * (partial(request, request.steps) if request.img2img else request.steps)
    if not request.hires:
        return first
    width, height = request.canvas
    return first + width * height * partial(request, request.hires.steps or request.steps)


def partial(request: RenderRequest, steps: int) -> int:
    """Steps that are left when denoising begins at the request's strength."""
    strength = 0.75 if request.denoising_strength is None else request.denoising_strength
    return min(steps, int(min(strength, MOST_STRENGTH) * steps) + 1)
