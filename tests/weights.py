"""Small safetensors files, written byte by byte: no torch, and as wrong as a test wants them."""

from __future__ import annotations

import json
import struct

SD1_KEYS = {
    "model.diffusion_model.time_embed.0.weight": [4, 4],
    "model.diffusion_model.time_embed.2.weight": [4, 4],
    "model.diffusion_model.input_blocks.0.0.weight": [4, 4, 3, 3],
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [4, 4],
    "model.diffusion_model.middle_block.0.in_layers.2.weight": [4, 4, 3, 3],
    "model.diffusion_model.out.2.weight": [4, 4, 3, 3],
    "first_stage_model.post_quant_conv.weight": [4, 4, 1, 1],
    "first_stage_model.decoder.conv_in.weight": [4, 4, 3, 3],
    "first_stage_model.decoder.conv_out.weight": [3, 4, 3, 3],
    "first_stage_model.encoder.conv_in.weight": [4, 3, 3, 3],
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": [8, 4],
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": [8, 4],
    "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": [4, 4],
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": [4],
}


def safetensors(shapes: dict[str, list[int]], *, fill: bytes = b"\0") -> bytes:
    """A valid file of float16 tensors; ``fill`` makes two files with the same keys differ."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    return framed(header, fill * offset)


def framed(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def a_checkpoint_file(fill: bytes = b"\0") -> bytes:
    return safetensors(SD1_KEYS, fill=fill)
