"""Random text encoders of every family, small enough to be built within a test. No test lives here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from gpuworker.engine.models.loader import TextTower
from gpuworker.engine.prompts.embeddings import Embedding, embedding_of
from gpuworker.engine.prompts.encoder import Conditioning, PromptEncoder, PromptRequest

CLIP_WIDTH, OPEN_CLIP_WIDTH, PROJECTION, LAYERS = 8, 12, 10, 4
SIZE_WIDTH = 4
KINDS: dict[str, tuple[Literal["clip", "open_clip"], ...]] = {
    "sd1": ("clip",),
    "sd2": ("open_clip",),
    "sdxl": ("clip", "open_clip"),
    "sdxl-refiner": ("open_clip",),
}


def text_checkpoint(family: str) -> Any:
    """What of a checkpoint the prompt encoder looks at."""
    torch.manual_seed(0)
    towers = tuple(TextTower(kind, _model(kind)) for kind in KINDS[family])
    has_sizes = family.startswith("sdxl")
    return SimpleNamespace(family=family, text=towers, size_embedding_width=SIZE_WIDTH if has_sizes else None)


def _model(kind: str) -> Any:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=CLIP_WIDTH if kind == "clip" else OPEN_CLIP_WIDTH,
        intermediate_size=16,
        projection_dim=PROJECTION,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        hidden_act="quick_gelu" if kind == "clip" else "gelu",
        bos_token_id=49406,
        eos_token_id=49407,
    )
    model = (CLIPTextModel if kind == "clip" else CLIPTextModelWithProjection)(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def embedding(name: str, slots: int, *widths: int) -> Embedding:
    torch.manual_seed(len(name))
    vectors = [torch.randn(slots, width) for width in widths]
    tensors = {"emb_params": vectors[0]} if len(vectors) == 1 else {"clip_l": vectors[0], "clip_g": vectors[1]}
    made = embedding_of(name, tensors)
    assert made
    return made


def encoded(
    checkpoint: Any,
    prompt: str,
    negative: str = "",
    *,
    encoder: PromptEncoder | None = None,
    key: str = "weights",
    **changes: Any,
) -> Conditioning:
    request = PromptRequest(prompt=prompt, negative_prompt=negative, **{"steps": 4, **changes})
    return (encoder or PromptEncoder()).encode(request, checkpoint=checkpoint, weights_key=key)


def context(checkpoint: Any, prompt: str, **changes: Any) -> torch.Tensor:
    return encoded(checkpoint, prompt, **changes).positive[0].at(0).context
