"""The safety filter: what may be done with a picture that is caught, and what became of one."""

from __future__ import annotations

from collections.abc import Iterable

CHECKER = "safety_checker"
"""Family of the weights: ``StableDiffusionSafetyChecker`` of diffusers."""
CHECKER_TENSORS = (
    "concept_embeds", "special_care_embeds", "concept_embeds_weights", "special_care_embeds_weights",
    "visual_projection.weight",
)  # fmt: skip
OFF, BLUR, REFUSE = MODES = ("off", "blur", "refuse")
"""From the mildest to the strictest."""
PASSED, BLURRED, BLOCKED = VERDICTS = ("passed", "blurred", "blocked")
VERDICT_OF_MODE = {BLUR: BLURRED, REFUSE: BLOCKED}
SENTENCES = {
    BLURRED: "The safety filter caught this picture; it is delivered blurred.",
    BLOCKED: "The safety filter caught this picture; a black one is delivered in its place.",
}


def strictest(modes: Iterable[str]) -> str:
    return max(modes, key=MODES.index, default=OFF)
