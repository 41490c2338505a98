"""How much one image of a request is: of work, in pixels times denoiser steps, and in the storage, in bytes. Pure.

Work needs no clock: it is what prices per megapixel-step count and what estimates of time are scaled by.
"""

from __future__ import annotations

from renderjobs.request import RenderRequest

MOST_STRENGTH = 0.999
"""A1111 never runs all steps of img2img (``setup_img2img_steps`` of modules/sd_samplers_common.py)."""
COLOURS = 3
MASKS = 3 + 4
"""Of what comes along when a mask was painted on: the mask, and what was drawn within it, which is transparent around."""
MAPS_PER_UNIT = 2
MOST_BYTES_PER_CHARACTER = 4
BYTES_OF_TEXTS = 16 * 1024
"""Beside the prompts: what an infotext says, and the parts of a file that are no pixels."""


def image_bytes(request: RenderRequest) -> int:
    """The most that the files of one image take. A compressed picture is never larger than its pixels but by what compression
    adds to what it cannot press, which is less than a hundredth."""
    width, height = request.canvas
    channels = COLOURS * (1 + MAPS_PER_UNIT * len(request.control))
    channels += MASKS if any(one.inpaint for one in request.img2img) else 0
    own = max((len(one.prompt) + len(one.negative_prompt) for one in request.texts), default=0)
    texts = sum(map(len, request.prompts())) + own
    pictures = channels * width * height
    return pictures + pictures // 100 + MOST_BYTES_PER_CHARACTER * texts + BYTES_OF_TEXTS


def pixel_steps(request: RenderRequest) -> int:
    """Of one image: its first pass, with the search for its noise where it has one, and its second pass; an enlargement or a
    control map is one step over what comes out."""
    if request.extras or request.detect:
        width, height = request.canvas
        return width * height
    steps = partial(request, request.steps) if request.img2img else request.steps
    if request.img2img and (search := request.img2img[0].reconstruction):
        steps += search.steps
    first = request.width * request.height * steps
    if not request.hires:
        return first
    width, height = request.canvas
    return first + width * height * partial(request, request.hires.steps or request.steps)


def partial(request: RenderRequest, steps: int) -> int:
    """Steps that are left when denoising begins at the request's strength."""
    strength = 0.75 if request.denoising_strength is None else request.denoising_strength
    return min(steps, int(min(strength, MOST_STRENGTH) * steps) + 1)
