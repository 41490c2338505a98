"""Tiny companions for tests, of the real classes, saved as publishers save theirs: language models and a safety checker."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CLIPConfig,
    CLIPImageProcessorPil,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

END = "</s>"
LINES = (
    "Instruction: Give a simple description of the image to generate a drawing prompt.",
    "Input: a red circle Output: a red circle on a blue background, sharp focus, highly detailed, digital painting",
    "a green meadow under a blue sky, a house, the sun on the left, cinematic lighting, artstation",
)
VOCABULARY = 300


def a_tokenizer() -> Tokenizer:
    """Bytes and their commonest pairs, as Bloom's own has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def a_text_generator(folder: Path, *, family: str = "bloom", seed: int = 0) -> Path:
    """The folder of a language model."""
    torch.manual_seed(seed)
    if family == "bloom":
        model = BloomForCausalLM(
            BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, eos_token_id=2)
        )
    else:
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=128, eos_token_id=2)
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=a_tokenizer(), eos_token=END).save_pretrained(folder)
    return folder


def a_safety_checker(folder: Path, *, caught: Image.Image, let_through: Image.Image, wrapped: bool = False) -> Path:
    """The folder of a checker with random weights, whose one concept is the first picture and lies between it and the second.

    Args:
        wrapped: With the names of published files, whose vision model lies inside another of that name.
    """
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)).eval()
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32, resample=Image.Resampling.BICUBIC)
        seen = processor([caught, let_through], return_tensors="pt").pixel_values
        both = model.visual_projection(model.vision_model(seen)[1])
        likeness = float(torch.cosine_similarity(both[0], both[1], dim=0))
        assert likeness < 0.99, "The two pictures are one to this checker; take others."
        model.concept_embeds_weights.fill_(2.0)  # closer than anything can be
        model.special_care_embeds_weights.fill_(2.0)
        model.concept_embeds[0] = both[0]
        model.concept_embeds_weights[0] = (1 + likeness) / 2
    model.save_pretrained(folder)
    if wrapped:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        inside = {
            f"vision_model.{name}" if name.startswith("vision_model.") else name: tensors[name] for name in tensors
        }
        save_file(inside, path)
    return folder
