"""Tiny companions for tests, of the real classes, saved as publishers save theirs: language models and a safety checker."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

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
