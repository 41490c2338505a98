"""The axes of the X/Y/Z plot: what each is called, which values it takes and what they change in a request. Pure.

The order of ``AXES`` is the contract: callers name an axis by its place among those of their tab.

Source: ``axis_options``, stable-diffusion-webui 1.10.1 ``scripts/xyz_grid.py``.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpuworker.contract.samplers import SAMPLERS
from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.compat.sdapi.scripts.base import Surroundings

TXT2IMG, IMG2IMG = "txt2img", "img2img"
NUMBER = r"([+-]?\s*\d+(?:\.\d*)?)"
WHOLE = r"([+-]?\s*\d+)"
STEPPED = {
    int: re.compile(rf"\s*{WHOLE}\s*-\s*{WHOLE}(?:\s*\(([+-]\d+)\s*\))?\s*"),
    float: re.compile(rf"\s*{NUMBER}\s*-\s*{NUMBER}(?:\s*\(([+-]\d+(?:\.\d*)?)\s*\))?\s*"),
}
"""``1-5`` and ``1-5 (+2)``, both ends included."""
COUNTED = {
    int: re.compile(rf"\s*{WHOLE}\s*-\s*{WHOLE}(?:\s*\[(\d+)\s*])?\s*"),
    float: re.compile(rf"\s*{NUMBER}\s*-\s*{NUMBER}(?:\s*\[(\d+(?:\.\d*)?)\s*])?\s*"),
}
"""``1-10 [5]``: so many values, evenly spread."""
NO_CHECKPOINT = (None, "", "None", "none")
SEED_AXES = ("Seed", "Var. seed")


@dataclass(slots=True)
class Draft:
    """A request on its way to a cell: axes are applied one after another, and a later one sees what an earlier one changed."""

    values: Mapping[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.changes[name] if name in self.changes else self.values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        # Of another tab's field A1111 makes an attribute that nobody reads.
        if name in self.values:
            self.changes[name] = value


Apply = Callable[[Draft, Any, Sequence[Any], Surroundings], None]
Confirm = Callable[[Sequence[Any], Surroundings], None]


@dataclass(frozen=True, slots=True)
class Axis:
    label: str
    kind: Callable[[Any], Any]
    apply: Apply
    tab: str | None = None
    """None: of both."""
    legend: Callable[[str, Any], str] = lambda label, value: f"{label}: {shortened(value)}"
    confirm: Confirm | None = None
    cost: float = 0.0
    """How slow it is to go from one value to the next; slow axes are walked in the outer loop."""
    dropdown: bool = False
    """Whether its values are chosen from a list, and so read from the third argument unless texts are asked for."""

    @property
    def nothing(self) -> bool:
        return self.label == "Nothing"


def shortened(value: Any) -> Any:
    return round(value, 8) if isinstance(value, float) else value


def plain(label: str, value: Any) -> str:
    return str(shortened(value))


def without_path(label: str, value: Any) -> str:
    return posixpath.basename(value)


def joined(label: str, value: Sequence[str]) -> str:
    return ", ".join(value)


def no_text(label: str, value: Any) -> str:
    return ""


def permutation(value: Any) -> Any:
    """The kind of an axis whose values are all orders of its words."""
    return value


def nothing(draft: Draft, value: Any, values: Sequence[Any], around: Surroundings) -> None:
    pass


def field_of(name: str) -> Apply:
    def apply(draft: Draft, value: Any, values: Sequence[Any], around: Surroundings) -> None:
        draft[name] = value

    return apply


def option_of(name: str) -> Apply:
    def apply(draft: Draft, value: Any, values: Sequence[Any], around: Surroundings) -> None:
        draft.options[name] = value

    return apply


def boolean_option_of(name: str) -> Apply:
    def apply(draft: Draft, value: str, values: Sequence[Any], around: Surroundings) -> None:
        draft.options[name] = value.lower() == "true"

    return apply


def search_and_replace(draft: Draft, value: str, values: Sequence[str], around: Surroundings) -> None:
    searched = values[0]
    prompts = {name: draft[name] for name in ("prompt", "negative_prompt")}
    if not any(searched in prompt for prompt in prompts.values()):
        raise RuntimeError(f"Prompt S/R did not find {searched} in prompt or negative prompt.")
    for name, prompt in prompts.items():
        draft[name] = prompt.replace(searched, value)


def reorder(draft: Draft, value: Sequence[str], values: Sequence[Any], around: Surroundings) -> None:
    """Put the words into the places where the prompt has them, in another order."""
    rest, built = draft["prompt"], ""
    found = sorted(((rest.find(word), word) for word in value), key=lambda place: place[0])
    for replacement, (_, word) in zip(value, found, strict=True):
        # QUIRK(A1111 1.10): a word that is not there is found at the last character, as str.find answers -1.
        place = rest.find(word)
        built += rest[:place] + replacement
        rest = rest[place + len(word) :]
    draft["prompt"] = built + rest


def checkpoint(draft: Draft, value: str, values: Sequence[Any], around: Surroundings) -> None:
    draft.options["sd_model_checkpoint"] = around.checkpoint(value)


def vae(draft: Draft, value: str, values: Sequence[Any], around: Surroundings) -> None:
    wanted = value.strip().lower()
    if wanted in ("auto", "automatic"):
        draft.options["sd_vae"] = "Automatic"
    elif wanted == "none":
        draft.options["sd_vae"] = "None"
    else:
        draft.options["sd_vae"] = next((name for name in around.vaes if name.lower() == wanted), "Automatic")


def styles(draft: Draft, value: str, values: Sequence[Any], around: Surroundings) -> None:
    draft["styles"] = [*(draft["styles"] or ()), *value.split(",")]


def solver_order(draft: Draft, value: int, values: Sequence[Any], around: Surroundings) -> None:
    draft.options["uni_pc_order"] = min(value, draft["steps"] - 1)


def faces(draft: Draft, value: str, values: Sequence[Any], around: Surroundings) -> None:
    models = {"codeformer": "CodeFormer", "gfpgan": "GFPGAN"}
    if model := models.get(value.lower()):
        draft.options["face_restoration_model"] = model
    draft["restore_faces"] = bool(model) or value.lower() in ("true", "yes", "y", "1")


def size(draft: Draft, value: str, values: Sequence[Any], around: Surroundings) -> None:
    width, _, height = value.partition("x")
    try:
        sides = int(width), int(height)
    except ValueError:
        return  # A1111 prints a line and keeps the size.
    draft["width"], draft["height"] = sides


def known_samplers(values: Sequence[str], around: Surroundings) -> None:
    known = {name.lower() for sampler in SAMPLERS for name in (sampler.name, *sampler.aliases)}
    for value in values:
        if value.lower() not in known:
            raise RuntimeError(f"Unknown sampler: {value}")


def known_checkpoints(values: Sequence[str], around: Surroundings) -> None:
    for value in values:
        if around.checkpoint(value) is None:
            raise RuntimeError(f"Unknown checkpoint: {value}")


def known_checkpoints_or_none(values: Sequence[str], around: Surroundings) -> None:
    known_checkpoints([value for value in values if value not in NO_CHECKPOINT], around)


AXES: tuple[Axis, ...] = (
    Axis("Nothing", str, nothing, legend=no_text),
    Axis("Seed", int, field_of("seed")),
    Axis("Var. seed", int, field_of("subseed")),
    Axis("Var. strength", float, field_of("subseed_strength")),
    Axis("Steps", int, field_of("steps")),
    Axis("Hires steps", int, field_of("hr_second_pass_steps"), TXT2IMG),
    Axis("CFG Scale", float, field_of("cfg_scale")),
    Axis("Image CFG Scale", float, field_of("image_cfg_scale"), IMG2IMG),
    Axis("Prompt S/R", str, search_and_replace, legend=plain),
    Axis("Prompt order", permutation, reorder, legend=joined),
    Axis("Sampler", str, field_of("sampler_name"), TXT2IMG, legend=plain, confirm=known_samplers, dropdown=True),
    Axis("Hires sampler", str, field_of("hr_sampler_name"), TXT2IMG, confirm=known_samplers, dropdown=True),
    Axis("Sampler", str, field_of("sampler_name"), IMG2IMG, legend=plain, confirm=known_samplers, dropdown=True),
    Axis("Checkpoint name", str, checkpoint, legend=without_path, confirm=known_checkpoints, cost=1.0, dropdown=True),
    Axis("Negative Guidance minimum sigma", float, field_of("s_min_uncond")),
    Axis("Sigma Churn", float, field_of("s_churn")),
    Axis("Sigma min", float, field_of("s_tmin")),
    Axis("Sigma max", float, field_of("s_tmax")),
    Axis("Sigma noise", float, field_of("s_noise")),
    Axis("Schedule type", str, field_of("scheduler"), dropdown=True),
    Axis("Schedule min sigma", float, option_of("sigma_min")),
    Axis("Schedule max sigma", float, option_of("sigma_max")),
    Axis("Schedule rho", float, option_of("rho")),
    Axis("Beta schedule alpha", float, option_of("beta_dist_alpha")),
    Axis("Beta schedule beta", float, option_of("beta_dist_beta")),
    Axis("Eta", float, field_of("eta")),
    Axis("Clip skip", int, option_of("CLIP_stop_at_last_layers")),
    Axis("Denoising", float, field_of("denoising_strength")),
    Axis("Initial noise multiplier", float, field_of("initial_noise_multiplier")),
    Axis("Extra noise", float, option_of("img2img_extra_noise")),
    Axis("Hires upscaler", str, field_of("hr_upscaler"), TXT2IMG, dropdown=True),
    Axis("Cond. Image Mask Weight", float, option_of("inpainting_mask_weight"), IMG2IMG),
    Axis("VAE", str, vae, cost=0.7, dropdown=True),
    Axis("Styles", str, styles, dropdown=True),
    Axis("UniPC Order", int, solver_order, cost=0.5),
    Axis("Face restore", str, faces, legend=plain),
    Axis("Token merging ratio", float, option_of("token_merging_ratio")),
    Axis("Token merging ratio high-res", float, option_of("token_merging_ratio_hr")),
    Axis(
        "Always discard next-to-last sigma", str, boolean_option_of("always_discard_next_to_last_sigma"), dropdown=True
    ),
    Axis("SGM noise multiplier", str, boolean_option_of("sgm_noise_multiplier"), dropdown=True),
    Axis(
        "Refiner checkpoint",
        str,
        field_of("refiner_checkpoint"),
        legend=without_path,
        confirm=known_checkpoints_or_none,
        cost=1.0,
        dropdown=True,
    ),
    Axis("Refiner switch at", float, field_of("refiner_switch_at")),
    Axis("RNG source", str, option_of("randn_source"), dropdown=True),
    Axis("FP8 mode", str, option_of("fp8_storage"), cost=0.9, dropdown=True),
    Axis("Size", str, size),
)


def axes_of(tab: str) -> list[Axis]:
    """The axes of a tab, in the order by which callers number them."""
    return [axis for axis in AXES if axis.tab in (None, tab)]


def values_of(axis: Axis, words: Sequence[str], *, most: int) -> list[Any]:
    """The values that an axis' words stand for: ranges spread out, every value of the axis' type.

    Raises:
        ValueError: A word is no value of this axis.
        HandlerError: There would be more than ``most``.
    """
    if axis.kind is permutation:
        spread: Any = itertools.islice(itertools.permutations(words), most + 1)
    elif axis.kind in (int, float):
        spread = itertools.chain.from_iterable(spread_out(word, axis.kind, most) for word in words if word.strip())
    else:
        spread = words
    found = [axis.kind(value) for value in spread]
    if len(found) > most:
        raise HandlerError(422, f"An axis of more than {most} values is not accepted.")
    return found


def spread_out(word: str, kind: Any, most: int) -> list[Any]:
    if match := STEPPED[kind].fullmatch(word):
        first, last = kind(match[1]), kind(match[2])
        step = kind(match[3] or 1)
        if step and abs((last - first) / step) > most:
            raise HandlerError(422, f"An axis of more than {most} values is not accepted.")
        # QUIRK(A1111 1.10): a fractional range steps once beyond its end, so 0.1-0.35 (+0.1) ends with 0.4.
        return list(range(first, last + 1, step)) if kind is int else np.arange(first, last + step, step).tolist()
    if match := COUNTED[kind].fullmatch(word):
        count = int(match[3] or 1)
        if count > most:
            raise HandlerError(422, f"An axis of more than {most} values is not accepted.")
        return [kind(value) for value in np.linspace(kind(match[1]), kind(match[2]), count).tolist()]
    return [word]
