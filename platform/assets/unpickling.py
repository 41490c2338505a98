"""Runs alone, in a process of its own that ``conversion`` starts: a pickled file of tensors in, a safetensors file out.

The only module of the web side that imports torch, and so never imported by it. It trusts nothing of its input: what it may use of
the machine is limited before the file is opened, torch's weights-only unpickler runs no code of the file, and references that
well-known files carry beside their weights become objects that do nothing.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any

REFUSED = 3
"""Exit status when the file cannot be converted; the reason is on standard output."""
INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
"""What training scripts leave in a file beside its weights."""
WRAPPERS = ("state_dict", "params_ema", "params-ema", "params", "model", "net")
"""Keys under which files keep their weights."""
EMBEDDING_KEY = "emb_params"
MAX_DEPTH = 4
STRUCTURE_FIELDS = (
    "name", "step", "layer_structure", "activation_func", "is_layer_norm", "weight_initialization", "use_dropout",
    "activate_output", "last_layer_dropout", "dropout_structure", "sd_checkpoint", "sd_checkpoint_name", "optional_info",
)  # fmt: skip
"""Of a hypernetwork, beside its widths; embeddings have some of them."""
CLONE_NEWUSER_AND_NET = 0x10000000 | 0x40000000


class Refused(Exception):
    """The message is the reason people read."""


class Inert:
    """Takes the place of a class or function whose object nobody needs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def main(source: str, target: str, memory_bytes: int, cpu_seconds: int, file_bytes: int) -> int:
    confine(memory_bytes, cpu_seconds, file_bytes)
    try:
        tensors, metadata = extracted(loaded(source))
        written(tensors, metadata, target, file_bytes)
    except MemoryError:
        return refuse("it takes more memory than such a file may.")
    except Refused as refusal:
        return refuse(str(refusal))
    return 0


def refuse(reason: str) -> int:
    print(reason)
    return REFUSED


def confine(memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    """Limits nobody inside can lift, and no network where the system lets an ordinary process give it up."""
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (allowed, allowed))
    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    if unshare:
        unshare(CLONE_NEWUSER_AND_NET)


def loaded(source: str) -> Any:
    """Raises: Refused: It is damaged, or more than tensors and plain values."""
    import torch

    inert: list[Any] = [(Inert, name) for name in INERT]
    torch.serialization.add_safe_globals([*inert, torch.nn.ParameterDict])
    try:
        with open(source, "rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the file decides what goes wrong inside the reader
        raise Refused(_why(str(error))) from error


def _why(message: str) -> str:
    if "can't allocate memory" in message:
        return "it takes more memory than such a file may."
    marker = "GLOBAL "
    if marker in message:
        name = message.split(marker, 1)[1].split()[0]
        return f"it needs code to be unpickled, {name[:100]}."
    return "it holds more than tensors and plain values, or is damaged."


# --- what is in it ---------------------------------------------------------------------------------------------------


def extracted(data: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors by name as safetensors files of that kind name them, and the metadata that goes along.

    Raises:
        Refused: There are none.
    """
    if not isinstance(data, Mapping):
        raise Refused("it holds no tensors by name.")
    if any(type(key) is int for key in data):
        return dict(_hypernetwork(data)), {"hypernetwork": _plain(data)}
    if "string_to_param" in data:
        return {EMBEDDING_KEY: _first_vectors(data["string_to_param"])}, {"embedding": _plain(data)}
    tensors = {str(name): value for name, value in _unwrapped(data).items() if _is_tensor(value)}
    if not tensors:
        raise Refused("it holds no tensors.")
    if len(tensors) == 1 and (only := next(iter(tensors.values()))).dim() <= 2:
        # A concept as diffusers saves it: one vector or several under its own name.
        return {EMBEDDING_KEY: only.reshape(-1, only.shape[-1]) if only.dim() else only}, {}
    return tensors, {}


def _unwrapped(data: Mapping[Any, Any], depth: int = 0) -> Mapping[Any, Any]:
    for key in WRAPPERS:
        inside = data.get(key)
        if isinstance(inside, Mapping) and depth < MAX_DEPTH:
            return _unwrapped(inside, depth + 1)
    return data


def _hypernetwork(data: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for width, networks in data.items():
        if type(width) is not int:
            continue
        if not isinstance(networks, list | tuple) or len(networks) != 2:
            raise Refused("its hypernetworks are not pairs.")
        for side, state in enumerate(networks):
            if not isinstance(state, Mapping) or not all(map(_is_tensor, state.values())):
                raise Refused("its hypernetworks hold more than tensors.")
            yield from ((f"{width}.{side}.{name}", tensor) for name, tensor in state.items())


def _first_vectors(vectors: Any) -> Any:
    """A1111 takes the first of an embedding's tokens."""
    by_token = getattr(vectors, "_parameters", vectors)
    found = [value for value in by_token.values() if _is_tensor(value)] if isinstance(by_token, Mapping) else []
    if not found:
        raise Refused("its embedding holds no vectors.")
    return found[0]


def _plain(data: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: data[name] for name in STRUCTURE_FIELDS if name in data and _is_plain(data[name])}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(item is None or isinstance(item, str | int | float | bool) for item in value)
    return value is None or isinstance(value, str | int | float | bool)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


# --- what comes out --------------------------------------------------------------------------------------------------


def written(tensors: dict[str, Any], metadata: dict[str, Any], target: str, file_bytes: int) -> None:
    """Raises: Refused: A tensor is of a kind that safetensors does not have, or all together are too large."""
    import torch
    from safetensors.torch import save_file

    if any(tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized for tensor in tensors.values()):
        raise Refused("it holds tensors that are not plain arrays.")
    # A few bytes can stand for any number of repeated values.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > file_bytes:
        raise Refused("its tensors are larger than the file.")
    plain = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    # One key at most: safetensors writes several in any order, and the same file must become the same bytes.
    texts = {name: json.dumps(fields, sort_keys=True) for name, fields in metadata.items()}
    try:
        save_file(plain, target, metadata=texts or None)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Refused("it holds tensors of a type that safetensors does not have.") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])))
