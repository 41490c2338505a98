"""Prompts from a language model: what is asked of it, how one was taught to be asked, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gpuworker.contract.recipe import InputPicture, Weights
from gpuworker.contract.spec import WeightsFile

ARCHITECTURES = {"bloom": "BloomForCausalLM", "gpt2": "GPT2LMHeadModel"}
"""``model_type`` of a configuration → the class of transformers that runs it. No other is loaded, and no code that comes along."""
CONFIG, TOKENIZER, INSTRUCTION = "config.json", "tokenizer.json", "instruction.txt"
"""Texts of a model's folder, kept in the metadata of its file. The last one is ours: what the prompt is wrapped in."""
PROMPT_MARK = "{prompt}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """How a model is asked."""

    instruction: str = PROMPT_MARK
    """``PROMPT_MARK`` stands for what the person typed."""
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.95
    repetition_penalty: float = 1.2

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Habits:
        return cls(**data)


BEAUTIFUL_PROMPT = Habits(
    instruction="Instruction: Give a simple description of the image to generate a drawing prompt.\n"
    f"Input: {PROMPT_MARK}\nOutput:"
)
BEAUTIFUL_PROMPT_2 = Habits(
    instruction="Converts a simple image description into a prompt. Prompts are formatted as multiple related tags "
    "separated by commas, plus you can use () to increase the weight, [] to decrease the weight, or use a number to "
    "specify the weight. You should add appropriate words to make the images described in the prompt more "
    "aesthetically pleasing, but make sure there is a correlation between the input and output.\n"
    f"### Input: {PROMPT_MARK}\n### Output:",
    temperature=0.9,
    repetition_penalty=1.1,
)
PUBLISHED = {"text2prompt-sd-v2": BEAUTIFUL_PROMPT_2, "text2prompt-sd": BEAUTIFUL_PROMPT}
"""Part of a model's name → what its publisher says. Source: model cards of alibaba-pai/pai-bloom-1b1-text2prompt-sd and -v2."""


def habits_of(name: str, instruction: str = "") -> Habits:
    """
    Args:
        name: Of the model, as its publisher calls it.
        instruction: What came along with the model; it goes before what is known of the name.
    """
    if instruction:
        return Habits(instruction=instruction)
    return next((habits for part, habits in PUBLISHED.items() if part in name.lower()), Habits())


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecipe:
    """A short prompt to make long ones of. The same recipe gives the same prompts on one device and build."""

    prompt: str
    model: Weights
    count: int
    seed: int
    """Of the first prompt; each one more has the next."""
    habits: Habits = Habits()

    def weights(self) -> tuple[Weights, ...]:
        return (self.model,)

    def inputs(self) -> tuple[InputPicture, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class TextSpec:
    """A recipe and the local file that holds its model."""

    recipe: TextRecipe
    weights: Mapping[str, WeightsFile]

    def file_of(self, weights: Weights) -> WeightsFile:
        return self.weights[weights.sha256]


@dataclass(frozen=True, slots=True)
class Written:
    prompts: tuple[str, ...]
    gpu_us: int
    """On the device, without loading the model."""
