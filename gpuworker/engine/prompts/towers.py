"""One text encoder and one batch of chunks: which hidden state counts, where embeddings go, what emphasis does. No prompts here.

Source: the behaviour of A1111 1.10.1 ``modules/sd_hijack_clip.py``, ``sd_hijack_open_clip.py`` and ``sd_emphasis.py``, and of the
encoders in Stability's ``ldm`` and ``sgm``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.models.loader import Checkpoint, TextTower
from gpuworker.engine.prompts.tokens import Chunk, end_token

EMPHASIS_MODES = ("Original", "No norm", "Ignore", "None")
OPEN_CLIP_PADDING = 0
PENULTIMATE = 2
"""Counted from the end: the hidden state before the last layer."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is taken from one text encoder."""

    tower: TextTower
    place: int
    """Among ``Checkpoint.text``, and so among an embedding's vectors."""
    hidden: int
    """Hidden state counted from the end; 1 is what the last layer gives."""
    normed: bool
    """Whether the final layer norm is applied to it."""
    pooled: bool
    """Whether the text as a whole is wanted, too."""

    @property
    def body(self) -> Any:
        """The transformer, without the projection around it."""
        return getattr(self.tower.model, "text_model", self.tower.model)

    @property
    def width(self) -> int:
        return int(self.tower.model.config.hidden_size)


def readings(checkpoint: Checkpoint, *, clip_skip: int, skip_clip_l: bool) -> tuple[Reading, ...]:
    """How the family reads its encoders.

    Args:
        clip_skip: Counts for SD 1, and for SDXL's first encoder if ``skip_clip_l``.

    Raises:
        InvalidSpecError: That encoder has fewer hidden states than ``clip_skip``.
    """
    if checkpoint.family in ("sdxl", "sdxl-refiner"):
        skipped = clip_skip if skip_clip_l else PENULTIMATE
        made = tuple(
            Reading(
                tower,
                place,
                skipped if tower.kind == "clip" else PENULTIMATE,
                normed=False,
                pooled=tower.kind == "open_clip",
            )
            for place, tower in enumerate(checkpoint.text)
        )
    else:
        tower = checkpoint.text[0]
        hidden = clip_skip if tower.kind == "clip" else PENULTIMATE
        made = (Reading(tower, 0, hidden, normed=True, pooled=False),)
    for reading in made:
        _require_layers(reading)
    return made


def _require_layers(reading: Reading) -> None:
    layers = reading.tower.model.config.num_hidden_layers
    if reading.hidden > layers + 1:
        raise InvalidSpecError(
            f"clip_skip is {reading.hidden}; the checkpoint's text encoder has {layers} layers.",
            field="clip_skip",
            value=reading.hidden,
        )


def encode_chunks(
    reading: Reading, chunks: Sequence[Chunk], counts: Sequence[int], emphasis: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run one chunk of each variant of a prompt through an encoder.

    Args:
        counts: How often each variant comes in the prompt's schedule.
    Returns:
        Shape (variants, 77, width), and the pooled texts of shape (variants, projection) if the reading wants them.
    """
    tokens = _input_tokens(reading, chunks)
    with _embedded(reading, chunks):
        output = reading.body(input_ids=tokens, output_hidden_states=True)
    pooled = _pooled(reading, tokens, output.last_hidden_state) if reading.pooled else None
    return _emphasised(_hidden_state(reading, output), chunks, counts, emphasis), pooled


def _input_tokens(reading: Reading, chunks: Sequence[Chunk]) -> torch.Tensor:
    rows = [chunk.framed_tokens for chunk in chunks]
    if reading.tower.kind == "open_clip":
        rows = [_padded_for_open_clip(row) for row in rows]
    return torch.tensor(rows, device=reading.body.device)


def _padded_for_open_clip(row: list[int]) -> list[int]:
    """OpenCLIP has a padding token of its own after the first end token, wherever that comes from."""
    end = row.index(end_token())
    return row[: end + 1] + [OPEN_CLIP_PADDING] * (len(row) - end - 1)


def _hidden_state(reading: Reading, output: Any) -> torch.Tensor:
    if reading.normed and reading.hidden == 1:
        return output.last_hidden_state
    hidden = output.hidden_states[-reading.hidden]
    return reading.body.final_layer_norm(hidden) if reading.normed else hidden


def _pooled(reading: Reading, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """The vector at the first end token, which has the highest number of all, projected."""
    rows = torch.arange(len(last), device=last.device)
    return reading.tower.model.text_projection(last[rows, tokens.argmax(dim=-1)])


@contextmanager
def _embedded(reading: Reading, chunks: Sequence[Chunk]) -> Iterator[None]:
    """Lay the chunks' embeddings over the token embedding's output while the encoder runs."""
    if not any(chunk.placements for chunk in chunks):
        yield
        return

    def replace(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for row, chunk in enumerate(chunks):
            for placement in chunk.placements:
                begin = placement.position + 1  # after the start token
                vectors = placement.embedding.vectors[reading.place][: output.shape[1] - begin]
                output[row, begin : begin + len(vectors)] = vectors.to(output)
        return output

    handle = reading.body.embeddings.token_embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def _emphasised(encoded: torch.Tensor, chunks: Sequence[Chunk], counts: Sequence[int], emphasis: str) -> torch.Tensor:
    if emphasis in ("Ignore", "None"):
        return encoded
    weights = torch.tensor([chunk.framed_weights for chunk in chunks], device=encoded.device).unsqueeze(-1)
    weighted = (encoded.float() * weights).to(encoded.dtype)
    if emphasis == "No norm":
        return weighted
    return weighted * (_mean(encoded, counts) / _mean(weighted, counts)).to(encoded.dtype)


def _mean(encoded: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The mean over all variants, a text that comes several times counted as often."""
    return encoded.float().repeat_interleave(torch.tensor(counts, device=encoded.device), dim=0).mean()
