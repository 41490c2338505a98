"""Quantised weights, told from names and types of tensors: integers that stand for numbers, or numbers that need a scale beside.

The intake asks before it keeps a file; the engine, which could load neither, is then never asked to. Standard library only.

Source of the names: bitsandbytes (``absmax``, ``quant_map``, ``quant_state``, ``SCB``), GPTQ and AWQ (``qweight``, ``qzeros``,
``scales``), ComfyUI's scaled fp8 (``scaled_fp8``, ``scale_weight``, ``scale_input``, ``comfy_quant``), compressed-tensors and
torchao (``weight_scale``, ``input_scale``).
"""

from __future__ import annotations

from collections.abc import Mapping

from gpuworker.contract.layouts import Shapes

INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"})
SCALES = frozenset(
    {
        "absmax", "nested_absmax", "quant_map", "nested_quant_map", "SCB", "qweight", "qzeros", "scales", "scaled_fp8",
        "scale_weight", "scale_input", "comfy_quant", "weight_scale", "weight_scale_2", "input_scale", "weight_zero_point",
    }
)  # fmt: skip
"""Last part of the name of a tensor that only a quantised file has. ``scale`` and ``logit_scale`` are ordinary weights."""
STATE = "quant_state"


def quantised_tensor(shapes: Shapes, types: Mapping[str, str]) -> str | None:
    """The first tensor that shows the file to be quantised, with its type; None where all weights are what they say.

    Plain fp8 is no quantisation in this sense: each number stands for itself. Counters and position numbers are integers in any
    file, but none of them is called a weight.

    Args:
        types: Of safetensors, by name.
    """
    for name in sorted(shapes):
        last = name.rpartition(".")[2]
        is_packed = last == "weight" and types.get(name) in INTEGERS and len(shapes[name]) > 1
        if is_packed or last in SCALES or STATE in name:
            return f"{name} ({types.get(name, 'unknown')})"
    return None
