"""Long prompts from a short one: sampled token by token from a language model, every prompt with a seed of its own.

What decides the next token is drawn on the CPU, so that a seed gives one draw on any device. Loading is in ``models``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpuworker.contract.texts import PROMPT_MARK, Habits, TextRecipe
from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.models.text_generators import TextGenerator

MAX_NEW_TOKENS = 384
"""As the model cards of BeautifulPrompt say."""
LEAST_NEW_TOKENS = 16
"""A model that is asked something so long that it could answer no more than this is not asked."""


@torch.inference_mode()
def write_prompts(
    generator: TextGenerator,
    recipe: TextRecipe,
    *,
    on_step: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> tuple[str, ...] | None:
    """The prompts in the order of their seeds; None when stopped.

    Raises:
        InvalidSpecError: The prompt is too long for the model.
    """
    asked = generator.tokenizer.encode(recipe.habits.instruction.replace(PROMPT_MARK, recipe.prompt)).ids
    new_tokens = min(MAX_NEW_TOKENS, generator.context - len(asked))
    if not asked or new_tokens < LEAST_NEW_TOKENS:
        raise InvalidSpecError(
            f"The prompt is {len(asked)} tokens long with its instruction; the model reads at most "
            f"{generator.context - LEAST_NEW_TOKENS} and needs one.",
            field="prompt",
            value=len(asked),
        )
    device = generator.model.device
    draws = [torch.Generator("cpu").manual_seed(recipe.seed + index) for index in range(recipe.count)]
    weighed = _weighing(recipe.habits)
    tokens: Any = torch.tensor([asked] * recipe.count, device=device)
    given, memory = tokens, None
    ended = [False] * recipe.count
    for step in range(new_tokens):
        if should_stop():
            return None
        answer = generator.model(input_ids=given, past_key_values=memory, use_cache=True)
        memory = answer.past_key_values
        scores = weighed(tokens, answer.logits[:, -1].float())
        given = _drawn(torch.softmax(scores, dim=-1).cpu(), draws).to(device)
        tokens = torch.cat([tokens, given], dim=1)
        ended = [done or int(token) in generator.ends for done, token in zip(ended, given, strict=True)]
        on_step(step + 1, new_tokens)
        if all(ended):
            break
    return tuple(_text(generator, row[len(asked) :]) for row in tokens.tolist())


def _weighing(habits: Habits) -> LogitsProcessorList:
    """In the order in which transformers' ``generate`` applies them."""
    return LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(habits.repetition_penalty),
            TemperatureLogitsWarper(habits.temperature),
            TopKLogitsWarper(habits.top_k),
            TopPLogitsWarper(habits.top_p),
        ]
    )


def _drawn(chances: torch.Tensor, draws: list[torch.Generator]) -> torch.Tensor:
    """One token per row, each by its own generator."""
    return torch.cat([torch.multinomial(row, 1, generator=draw) for row, draw in zip(chances, draws, strict=True)])[
        :, None
    ]


def _text(generator: TextGenerator, tokens: list[int]) -> str:
    """Up to the first token that ends a text; what comes after it answers nothing."""
    end = next((place for place, token in enumerate(tokens) if token in generator.ends), len(tokens))
    text = generator.tokenizer.decode(tokens[:end], skip_special_tokens=True)
    # A prompt is one line, and models of bytes can write what no database takes.
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
