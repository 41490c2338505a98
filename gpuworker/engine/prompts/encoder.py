"""From prompts to conditioning: edit schedules, encoded texts remembered, what SDXL is told beside them, one length. No sampling.

Source: ``modules/prompt_parser.py``, ``modules/sd_models_xl.py``, ``modules/sd_samplers_cfg_denoiser.py`` of A1111 1.10.1 and
``GeneralConditioner`` of ``sgm``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from diffusers.models.embeddings import get_timestep_embedding

from gpuworker.contract import Settings
from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.models.cache import ByteCache
from gpuworker.engine.models.loader import Checkpoint
from gpuworker.engine.prompts.embeddings import Embedding, fitting
from gpuworker.engine.prompts.parser import edit_schedule, split_composition
from gpuworker.engine.prompts.tokens import Chunk, chunks_of
from gpuworker.engine.prompts.towers import EMPHASIS_MODES, Reading, encode_chunks, readings

CACHE_BYTES = 256 * 1024 * 1024
FAMILIES_WITH_SIZES = ("sdxl", "sdxl-refiner")
"""Their networks are told of sizes in a vector beside the text, and see zeros instead of an empty negative prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Cond:
    """What the network is conditioned on in one call, for one row."""

    context: torch.Tensor
    """Shape (tokens, width)."""
    vector: torch.Tensor | None = None
    """Shape (adm,): pooled text and sizes, where the family has such a vector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """One image's prompts for one pass."""

    prompt: str
    """Without network tags."""
    negative_prompt: str
    steps: int
    """The total that prompt editing counts against."""
    first_pass_steps: int | None = None
    """In a hires pass, the first pass' total."""
    clip_skip: int = 1
    emphasis: str = "Original"
    settings: Settings = field(default_factory=Settings)
    width: int = 0
    """Of the pass, in pixels, as SDXL is told."""
    height: int = 0
    embeddings: tuple[Embedding, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptTrack:
    """One prompt through the steps of a pass."""

    variants: tuple[tuple[int, Cond], ...]
    """(last denoiser call it is valid for, conditioning); all of one length."""
    weight: float = 1.0

    def at(self, call: int) -> Cond:
        """The conditioning of a denoiser call, counted from 0.

        QUIRK(A1111 1.10): a call beyond the last variant, which samplers with extra calls make, gets the first one again.
        """
        return next((cond for last_call, cond in self.variants if call <= last_call), self.variants[0][1])

    @property
    def tokens(self) -> int:
        return len(self.variants[0][1].context)

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PromptTrack:
        """With other contexts; what was one conditioning stays one."""
        conds = {id(cond): cond for _, cond in self.variants}
        changed = {key: replace(cond, context=change(cond.context)) for key, cond in conds.items()}
        return replace(self, variants=tuple((last_call, changed[id(cond)]) for last_call, cond in self.variants))


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What one image is steered by."""

    positive: tuple[PromptTrack, ...]
    """The parts of an ``AND`` composition; one without ``AND``."""
    negative: PromptTrack


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTexts:
    """The variants of one prompt, as the text encoders give them."""

    context: torch.Tensor
    """Shape (distinct texts in order of appearance, 77 × chunks, width), in the encoders' type and on their device."""
    pooled: torch.Tensor | None
    """Shape (distinct texts, projection), of the first chunk; None where no encoder pools."""

    @property
    def size_bytes(self) -> int:
        return self.context.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    def blank(self) -> EncodedTexts:
        return EncodedTexts(
            torch.zeros_like(self.context), None if self.pooled is None else torch.zeros_like(self.pooled)
        )


class PromptEncoder:
    """Encodes prompts with a checkpoint's text encoders and remembers the results (H7)."""

    def __init__(self, cache_bytes: int = CACHE_BYTES) -> None:
        self.cache: ByteCache[EncodedTexts] = ByteCache(cache_bytes, size_of=lambda texts: texts.size_bytes)

    def encode(self, request: PromptRequest, *, checkpoint: Checkpoint, weights_key: str) -> Conditioning:
        """Encode one image's prompts.

        Args:
            weights_key: Names the text encoders' weights in the cache, with the networks merged into them.

        Raises:
            InvalidSpecError: The text encoder has fewer layers than ``clip_skip``, no such emphasis mode exists, or an embedding
                is longer than a chunk.
        """
        return _Encoding(self.cache, request, checkpoint, weights_key).conditioning()


class _Encoding:
    """One image's prompts on their way."""

    def __init__(
        self, cache: ByteCache[EncodedTexts], request: PromptRequest, checkpoint: Checkpoint, weights_key: str
    ) -> None:
        _require_emphasis(request.emphasis)
        self.request = request
        self.settings = request.settings
        self.checkpoint = checkpoint
        self.readings = readings(
            checkpoint, clip_skip=max(request.clip_skip, 1), skip_clip_l=self.settings.sdxl_clip_l_skip
        )
        self.embeddings = fitting(request.embeddings, tuple(reading.width for reading in self.readings))
        self._cache = cache
        self._circumstances = (
            weights_key,
            tuple(reading.hidden for reading in self.readings),
            request.emphasis,
            self.settings.comma_padding_backtrack,
            tuple((embedding.name, embedding.digest) for embedding in self.embeddings),
        )

    def conditioning(self) -> Conditioning:
        positive = [self._track(text, weight) for text, weight in split_composition(self.request.prompt)]
        negative = self._track(self.request.negative_prompt, is_negative=True)
        longest = max(track.tokens for track in positive)
        # QUIRK(A1111 1.10): the parts of an AND get one length by repeating their last vector, not by an empty chunk.
        positive = [track.changed(lambda context: _repeated(context, longest)) for track in positive]
        if self.settings.pad_cond_uncond_v0:
            negative = negative.changed(lambda context: _repeated(context[:longest], longest))
        elif self.settings.pad_cond_uncond:
            tokens = max(longest, negative.tokens)
            positive, negative = [self._padded(track, tokens) for track in positive], self._padded(negative, tokens)
        return Conditioning(tuple(positive), negative)

    def _track(self, prompt: str, weight: float = 1.0, *, is_negative: bool = False) -> PromptTrack:
        schedule = edit_schedule(
            prompt,
            self.request.steps,
            first_pass_steps=self.request.first_pass_steps,
            old_scheduling=self.settings.use_old_scheduling,
        )
        texts = tuple(text for _, text in schedule)
        encoded = self._encoded(texts)
        if is_negative and self._has_sizes and not any(texts):
            encoded = encoded.blank()
        told = self._sizes(encoded.context.device, is_negative=is_negative)
        conds = {
            text: Cond(
                encoded.context[place],
                None if told is None or encoded.pooled is None else torch.cat([encoded.pooled[place].float(), told]),
            )
            for place, text in enumerate(dict.fromkeys(texts))
        }
        return PromptTrack(tuple((end, conds[text]) for end, text in schedule), weight)

    def _encoded(self, texts: tuple[str, ...]) -> EncodedTexts:
        return self._cache.get_or_make((*self._circumstances, texts), lambda: self._encode(texts))

    @torch.inference_mode()
    def _encode(self, texts: tuple[str, ...]) -> EncodedTexts:
        """Encode the variants of one prompt, which belong together: they get one length, and emphasis averages over all of them."""
        counts = Counter(texts)
        chunked = [self._chunks(text) for text in counts]
        length = max(len(chunks) for chunks in chunked)
        columns = [[chunks[index] if index < len(chunks) else Chunk() for chunks in chunked] for index in range(length)]
        return _joined([self._read(reading, columns, list(counts.values())) for reading in self.readings])

    def _chunks(self, text: str) -> list[Chunk]:
        return chunks_of(
            text,
            self.request.emphasis,
            embeddings=self.embeddings,
            comma_backtrack=self.settings.comma_padding_backtrack,
        )

    def _read(self, reading: Reading, columns: Sequence[Sequence[Chunk]], counts: Sequence[int]) -> EncodedTexts:
        encoded = [encode_chunks(reading, column, counts, self.request.emphasis) for column in columns]
        return EncodedTexts(torch.cat([context for context, _ in encoded], dim=1), encoded[0][1])

    def _padded(self, track: PromptTrack, tokens: int) -> PromptTrack:
        """Lengthened by the encoding of an empty text."""
        if track.tokens == tokens:
            return track
        empty = self._encoded(("",)).context[0]
        missing = (tokens - track.tokens) // len(empty)
        return track.changed(lambda context: torch.cat([context, empty.repeat(missing, 1)]))

    # --- what SDXL is told beside the text ---------------------------------------------------------------------------

    @property
    def _has_sizes(self) -> bool:
        return self.checkpoint.family in FAMILIES_WITH_SIZES

    def _sizes(self, device: torch.device, *, is_negative: bool) -> torch.Tensor | None:
        """Each number as a vector of sines, in the order of the family's configuration."""
        width = self.checkpoint.size_embedding_width
        if not self._has_sizes or width is None:
            return None
        size = (self.request.height, self.request.width)
        crop = (self.settings.sdxl_crop_top, self.settings.sdxl_crop_left)
        target = size if self.checkpoint.family == "sdxl" else (self._aesthetic_score(is_negative),)
        numbers = torch.tensor([*size, *crop, *target], dtype=torch.float32, device=device)
        return get_timestep_embedding(numbers, width, flip_sin_to_cos=True, downscale_freq_shift=0).flatten()

    def _aesthetic_score(self, is_negative: bool) -> float:
        settings = self.settings
        return settings.sdxl_refiner_low_aesthetic_score if is_negative else settings.sdxl_refiner_high_aesthetic_score


def _require_emphasis(emphasis: str) -> None:
    if emphasis not in EMPHASIS_MODES:
        raise InvalidSpecError(
            f"Emphasis {emphasis!r} is not known; it is one of {', '.join(EMPHASIS_MODES)}.",
            field="emphasis",
            value=emphasis,
        )


def _joined(encoders: Sequence[EncodedTexts]) -> EncodedTexts:
    """The encoders' vectors side by side."""
    if len(encoders) == 1:
        return encoders[0]
    pooled = [texts.pooled for texts in encoders if texts.pooled is not None]
    return EncodedTexts(
        torch.cat([texts.context for texts in encoders], dim=-1), torch.cat(pooled, dim=-1) if pooled else None
    )


def _repeated(context: torch.Tensor, tokens: int) -> torch.Tensor:
    """Lengthened by its last vector."""
    missing = tokens - len(context)
    return torch.cat([context, context[-1:].expand(missing, -1)]) if missing > 0 else context
