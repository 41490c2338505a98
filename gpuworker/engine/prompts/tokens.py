"""From one text to chunks of 75 tokens: tokenising, cutting, names of embeddings. No network runs here.

Source: the behaviour of A1111 1.10.1 ``modules/sd_hijack_clip.py``, measured against recorded chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from transformers import CLIPTokenizer

from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.prompts.cleaning import cleaned
from gpuworker.engine.prompts.embeddings import Embedding
from gpuworker.engine.prompts.parser import Fragment, parse_attention

CHUNK_TOKENS = 75
COMMA_BACKTRACK = 20
"""A comma this close before the end of a full chunk takes what follows it along to the next; A1111's default."""
SLOT = 0
"""The token that stands where an embedding's vector will be."""
TOKENIZER_DIR = Path(__file__).parent.parent / "data" / "clip_tokenizer"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an embedding's vectors go."""

    position: int
    """Of its first vector, counted from the start of the chunk's own tokens."""
    embedding: Embedding


@dataclass(slots=True)
class Chunk:
    """Up to 75 tokens and their weights."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)

    @property
    def framed_tokens(self) -> list[int]:
        """77 tokens: start, the chunk, end, and the end token again as padding."""
        tokenizer = _tokenizer()
        padding = [tokenizer.eos_token_id] * (CHUNK_TOKENS + 1 - len(self.tokens))
        return [tokenizer.bos_token_id, *self.tokens, *padding]

    @property
    def framed_weights(self) -> list[float]:
        return [1.0, *self.weights, *[1.0] * (CHUNK_TOKENS + 1 - len(self.weights))]

    @property
    def is_full(self) -> bool:
        return len(self.tokens) == CHUNK_TOKENS

    def split(self, position: int) -> tuple[Chunk, Chunk]:
        """QUIRK(A1111 1.10): an embedding after the cut leaves its vectors behind, over the padding; only its slots move on."""
        return (
            Chunk(self.tokens[:position], self.weights[:position], self.placements),
            Chunk(self.tokens[position:], self.weights[position:]),
        )

    def add(self, tokens: Sequence[int], weight: float) -> None:
        self.tokens += tokens
        self.weights += [weight] * len(tokens)


def end_token() -> int:
    return int(_tokenizer().eos_token_id)


def chunks_of(
    text: str, emphasis: str, *, embeddings: Sequence[Embedding] = (), comma_backtrack: int = COMMA_BACKTRACK
) -> list[Chunk]:
    """Tokenise one text into chunks; at least one.

    Raises:
        InvalidSpecError: An embedding the text names is longer than a chunk.
    """
    fragments = [Fragment(text, 1.0)] if emphasis == "None" else parse_attention(text)
    names = _Names(embeddings)
    cutter = _Cutter(comma_backtrack)
    for fragment, tokens in zip(fragments, _token_ids([fragment.text for fragment in fragments]), strict=True):
        if fragment.is_break:
            cutter.end_chunk()
            continue
        position = 0
        while position < len(tokens):
            embedding, length = names.at(tokens, position)
            cutter.take(tokens[position], fragment.weight, embedding)
            position += length
    return cutter.finished()


class _Cutter:
    """Fills chunks from left to right."""

    def __init__(self, comma_backtrack: int) -> None:
        self.comma_backtrack = comma_backtrack
        self._full: list[Chunk] = []
        self._chunk = Chunk()
        self._comma: int | None = None
        """Where the chunk's last comma stands."""

    def end_chunk(self) -> None:
        self._full.append(self._chunk)
        self._chunk, self._comma = Chunk(), None

    def take(self, token: int, weight: float, embedding: Embedding | None) -> None:
        is_comma = token == _comma_id()
        if is_comma:
            self._comma = len(self._chunk.tokens)
        if self._chunk.is_full:
            self._cut(at_comma=not is_comma)
        if embedding is None:
            self._chunk.add([token], weight)
            return
        if embedding.slots > CHUNK_TOKENS:
            raise InvalidSpecError(
                f"Embedding {embedding.name!r} takes {embedding.slots} tokens; a chunk holds {CHUNK_TOKENS}.",
                field="embeddings",
                value=embedding.name,
            )
        if len(self._chunk.tokens) + embedding.slots > CHUNK_TOKENS:
            self.end_chunk()
        self._chunk.placements.append(Placement(len(self._chunk.tokens), embedding))
        self._chunk.add([SLOT] * embedding.slots, weight)

    def _cut(self, *, at_comma: bool) -> None:
        comma, self._comma = self._comma, None
        is_near = comma is not None and CHUNK_TOKENS - comma <= self.comma_backtrack
        position = comma + 1 if at_comma and is_near and comma is not None else CHUNK_TOKENS
        full, self._chunk = self._chunk.split(position)
        self._full.append(full)

    def finished(self) -> list[Chunk]:
        if self._chunk.tokens or not self._full:
            self._full.append(self._chunk)
        return self._full


class _Names:
    """Finds embeddings by the tokens of their names: longest first, of equals the one listed first."""

    def __init__(self, embeddings: Sequence[Embedding]) -> None:
        self._by_first: dict[int, list[tuple[list[int], Embedding]]] = {}
        for embedding, ids in zip(embeddings, _token_ids([item.name for item in embeddings]), strict=True):
            if ids:
                self._by_first.setdefault(ids[0], []).append((ids, embedding))
        for candidates in self._by_first.values():
            candidates.sort(key=lambda candidate: -len(candidate[0]))

    def at(self, tokens: Sequence[int], position: int) -> tuple[Embedding | None, int]:
        """The embedding whose name begins there, and how many tokens of the text are used up."""
        for ids, embedding in self._by_first.get(tokens[position], ()):
            if tokens[position : position + len(ids)] == ids:
                return embedding, len(ids)
        return None, 1


@cache
def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(TOKENIZER_DIR)


@cache
def _comma_id() -> int:
    return int(_tokenizer().get_vocab()[",</w>"])


def _token_ids(texts: Sequence[str]) -> list[list[int]]:
    """One call for all texts. The tokenizer beneath is asked directly: the one around it warns of texts longer than a window."""
    encodings = _tokenizer().backend_tokenizer.encode_batch_fast(
        [cleaned(text) for text in texts], add_special_tokens=False
    )
    return [encoding.ids for encoding in encodings]
