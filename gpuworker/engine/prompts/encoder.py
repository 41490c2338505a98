"""From prompt text to conditioning tensors: chunks of 75 tokens, emphasis, clip skip, a cache of what was encoded. No sampling.

Source: the behaviour of A1111 1.10 ``modules/sd_hijack_clip.py`` and ``sd_emphasis.py``, measured against recorded tensors.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from transformers import CLIPTokenizer
from transformers.utils import logging as transformers_logging

from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.models.cache import ByteCache
from gpuworker.engine.models.loader import Checkpoint
from gpuworker.engine.prompts.parser import Fragment, edit_schedule, parse_attention, split_composition

CHUNK_TOKENS = 75
COMMA_BACKTRACK = 20
"""A comma this close before the end of a full chunk takes what follows it along to the next."""
CACHE_BYTES = 256 * 1024 * 1024
EMPHASIS_MODES = ("Original", "No norm", "Ignore", "None")
TOKENIZER_DIR = Path(__file__).parent.parent / "data" / "clip_tokenizer"


@dataclass(frozen=True, slots=True)
class PromptTrack:
    """One prompt through the steps of a pass."""

    variants: tuple[tuple[int, torch.Tensor], ...]
    """(last denoiser call it is valid for, conditioning of shape (tokens, width)); all of one length."""
    weight: float = 1.0

    def at(self, call: int) -> torch.Tensor:
        """The conditioning of a denoiser call, counted from 0.

        QUIRK(A1111 1.10): a call beyond the last variant, which samplers with extra calls make, gets the first one again.
        """
        return next((tensor for last_call, tensor in self.variants if call <= last_call), self.variants[0][1])


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What one image is steered by."""

    positive: tuple[PromptTrack, ...]
    """The parts of an ``AND`` composition; one without ``AND``."""
    negative: PromptTrack


class PromptEncoder:
    """Encodes prompts with a checkpoint's text encoder and remembers the results (H7)."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self.cache: ByteCache[torch.Tensor] = ByteCache(cache_bytes, size_of=lambda tensor: tensor.nbytes)

    def encode(
        self,
        prompt: str,
        negative_prompt: str,
        *,
        checkpoint: Checkpoint,
        checkpoint_key: str,
        steps: int,
        clip_skip: int,
        emphasis: str,
    ) -> Conditioning:
        """Encode one image's prompts.

        Args:
            checkpoint_key: Names the text encoder's weights in the cache.
            steps: The total that prompt editing counts against.

        Raises:
            InvalidSpecError: The text encoder has fewer layers than ``clip_skip``, or no such emphasis mode exists.
        """
        _require_valid(checkpoint, clip_skip, emphasis)

        def track(text: str, weight: float = 1.0) -> PromptTrack:
            schedule = edit_schedule(text, steps)
            texts = tuple(text for _, text in schedule)
            key = (checkpoint_key, texts, clip_skip, emphasis)
            tensors = self.cache.get_or_make(key, lambda: encode_texts(texts, checkpoint, clip_skip, emphasis))
            index = {text: position for position, text in enumerate(dict.fromkeys(texts))}
            return PromptTrack(tuple((end, tensors[index[text]]) for end, text in schedule), weight)

        return Conditioning(
            positive=tuple(track(text, weight) for text, weight in split_composition(prompt)),
            negative=track(negative_prompt),
        )


def _require_valid(checkpoint: Checkpoint, clip_skip: int, emphasis: str) -> None:
    layers = checkpoint.text_encoder.config.num_hidden_layers
    if clip_skip > layers:
        raise InvalidSpecError(
            f"clip_skip is {clip_skip}; the checkpoint's text encoder has {layers} layers.",
            field="clip_skip",
            value=clip_skip,
        )
    if emphasis not in EMPHASIS_MODES:
        raise InvalidSpecError(
            f"Emphasis {emphasis!r} is not known; it is one of {', '.join(EMPHASIS_MODES)}.",
            field="emphasis",
            value=emphasis,
        )


@torch.inference_mode()
def encode_texts(texts: tuple[str, ...], checkpoint: Checkpoint, clip_skip: int, emphasis: str) -> torch.Tensor:
    """Encode the variants of one prompt, which belong together: they get one length, and emphasis averages over all of them.

    Returns:
        Shape (distinct texts in order of appearance, 77 × chunks, width), in the encoder's type and on its device.
    """
    counts = Counter(texts)
    chunked = [chunks_of(text, emphasis) for text in counts]
    length = max(len(chunks) for chunks in chunked)
    padded = [chunks + [Chunk()] * (length - len(chunks)) for chunks in chunked]
    encoded = [
        _encode_chunk([chunks[index] for chunks in padded], list(counts.values()), checkpoint, clip_skip, emphasis)
        for index in range(length)
    ]
    return torch.cat(encoded, dim=1)


def _encode_chunk(
    chunks: list[Chunk], counts: list[int], checkpoint: Checkpoint, clip_skip: int, emphasis: str
) -> torch.Tensor:
    encoder = checkpoint.text_encoder
    tokens = torch.tensor([chunk.framed_tokens for chunk in chunks], device=encoder.device)
    output = encoder(input_ids=tokens, output_hidden_states=clip_skip > 1)
    if clip_skip > 1:
        body = getattr(encoder, "text_model", encoder)
        encoded = body.final_layer_norm(output.hidden_states[-clip_skip])
    else:
        encoded = output.last_hidden_state
    if emphasis in ("Ignore", "None"):
        return encoded
    weights = torch.tensor([chunk.framed_weights for chunk in chunks], device=encoder.device).unsqueeze(-1)
    weighted = (encoded.float() * weights).to(encoded.dtype)
    if emphasis == "No norm":
        return weighted
    return weighted * (_mean(encoded, counts) / _mean(weighted, counts)).to(encoded.dtype)


def _mean(encoded: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The mean over all variants, a text that comes several times counted as often."""
    return encoded.float().repeat_interleave(torch.tensor(counts, device=encoded.device), dim=0).mean()


# --- chunks ----------------------------------------------------------------------------------------------------------


@cache
def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(TOKENIZER_DIR)


@dataclass(slots=True)
class Chunk:
    """Up to 75 tokens and their weights."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def framed_tokens(self) -> list[int]:
        """77 tokens: start, the chunk, end, and the end token again as padding."""
        tokenizer = _tokenizer()
        padding = [tokenizer.eos_token_id] * (CHUNK_TOKENS + 1 - len(self.tokens))
        return [tokenizer.bos_token_id, *self.tokens, *padding]

    @property
    def framed_weights(self) -> list[float]:
        return [1.0, *self.weights, *[1.0] * (CHUNK_TOKENS + 1 - len(self.weights))]

    def split(self, position: int) -> tuple[Chunk, Chunk]:
        return (
            Chunk(self.tokens[:position], self.weights[:position]),
            Chunk(self.tokens[position:], self.weights[position:]),
        )


def chunks_of(text: str, emphasis: str) -> list[Chunk]:
    """Tokenise one text into chunks; at least one."""
    fragments = [Fragment(text, 1.0)] if emphasis == "None" else parse_attention(text)
    chunks: list[Chunk] = []
    chunk, comma = Chunk(), None
    for fragment in fragments:
        if fragment.is_break:
            chunks.append(chunk)
            chunk, comma = Chunk(), None
            continue
        for token in _token_ids(fragment.text):
            if token == _comma_id():
                comma = len(chunk.tokens)
            if len(chunk.tokens) == CHUNK_TOKENS:
                near = token != _comma_id() and comma is not None and CHUNK_TOKENS - comma <= COMMA_BACKTRACK
                full, chunk = chunk.split(comma + 1 if near and comma is not None else CHUNK_TOKENS)
                chunks.append(full)
                comma = None
            chunk.tokens.append(token)
            chunk.weights.append(fragment.weight)
    if chunk.tokens or not chunks:
        chunks.append(chunk)
    return chunks


@cache
def _comma_id() -> int:
    return _tokenizer().get_vocab()[",</w>"]


def _token_ids(text: str) -> list[int]:
    # Prompts longer than the model's window are cut into chunks here, so the tokenizer's warning about them says nothing.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return _tokenizer()(text, add_special_tokens=False, truncation=False)["input_ids"]
    finally:
        transformers_logging.set_verbosity(verbosity)
