"""Networks of the ESRGAN family: a file of weights → a network that enlarges. Taking pictures through one is ``images/upscale.py``.

Two architectures are drawn here, each as wide and deep as the file's shapes say:

* ``RRDBNet``, in the four spellings it is published in: the first ESRGAN (``model.0``, ``model.1.sub.N.RDB1.conv1.0``), BSRGAN
  (``RRDB_trunk.N.RDB1.conv1``), Real-ESRGAN (``body.N.rdb1.conv1``), and that under ``params_ema`` or ``params``;
* ``SRVGGNetCompact`` (``body.N.weight``), the small ones of Real-ESRGAN.

Source: xinntao/ESRGAN and xinntao/Real-ESRGAN (architectures and keys).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from gpuworker.engine.errors import UpscalerError

COLOURS = 3
WRAPPERS = ("state_dict.", "params_ema.", "params-ema.", "params.", "module.", "netG.")
"""Prefixes that say nothing about the architecture, in the order they are looked for: averaged weights win over plain ones."""
MAX_SCALE = 16
"""No published file of the family enlarges more; a scale beyond it is a misread one."""
FOREIGN = {
    "SwinIR, Swin2SR or HAT": r"layers\.0\.residual_group\.",
    "DAT": r"layers\.0\.blocks\.0\.(attn|ffn)\.",
    "ScuNET": r"m_head\.0\.weight",
    "SPAN": r"block_1\.c1_r\.",
    "PLKSR": r"feats\.1\.(lk|channe)",
    "OmniSR": r"residual_layer\.0\.",
    "SPSR": r"(f_HR_conv|b_fea_conv)",
    "Real-CUGAN": r"unet1\.conv1\.",
    "ESRGAN+": r".*RDB1\.conv1x1",
    "GFPGAN": r"stylegan_decoder\.",
    "CodeFormer": r"(fuse_convs_dict|position_emb)",
    "a diffusion checkpoint": r"(model\.diffusion_model|first_stage_model)\.",
}
"""What a file looks like that is none of the family → how its keys begin."""


class UpscalerNetwork(nn.Module):
    """float (n, 3, h, w), 0…1, in the channel order of its training → (n, 3, h · scale, w · scale)."""

    scale: int


# --- RRDBNet ---------------------------------------------------------------------------------------------------------


class DenseBlock(nn.Module):
    """Five convolutions, each seeing what all before it made."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            _convolution(features + seen * growth, growth) for seen in range(4)
        )
        self.conv5 = _convolution(features + 4 * growth, features)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        made = given
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            made = torch.cat((made, _leaky(convolution(made))), 1)
        return self.conv5(made) * 0.2 + given


class ResidualInResidual(nn.Module):
    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.rdb3(self.rdb2(self.rdb1(given))) * 0.2 + given


class RRDBNet(UpscalerNetwork):
    """``doublings`` nearest-neighbour enlargements after the trunk; with ``unshuffle`` n, n × n pixels enter as channels."""

    def __init__(self, *, features: int, growth: int, blocks: int, doublings: int, unshuffle: int) -> None:
        super().__init__()
        self.unshuffle, self.scale = unshuffle, 2**doublings // unshuffle
        self.conv_first = _convolution(COLOURS * unshuffle**2, features)
        self.body = nn.Sequential(*(ResidualInResidual(features, growth) for _ in range(blocks)))
        self.conv_body = _convolution(features, features)
        self.ups = [f"conv_up{index}" for index in range(1, doublings + 1)]
        for name in self.ups:
            self.add_module(name, _convolution(features, features))
        self.conv_hr = _convolution(features, features)
        self.conv_last = _convolution(features, COLOURS)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        height, width = given.shape[-2:]
        made = self.conv_first(self._entering(given))
        made = made + self.conv_body(self.body(made))
        for name in self.ups:
            made = _leaky(self.get_submodule(name)(functional.interpolate(made, scale_factor=2, mode="nearest")))
        made = self.conv_last(_leaky(self.conv_hr(made)))
        return made[..., : height * self.scale, : width * self.scale]

    def _entering(self, given: torch.Tensor) -> torch.Tensor:
        """Sides that do not divide are mirrored at their end; the caller's size is cut out afterwards."""
        if self.unshuffle == 1:
            return given
        height, width = given.shape[-2:]
        missing = (-width % self.unshuffle, -height % self.unshuffle)
        if any(missing):
            given = functional.pad(given, (0, missing[0], 0, missing[1]), "reflect")
        return functional.pixel_unshuffle(given, self.unshuffle)


# --- SRVGGNetCompact -------------------------------------------------------------------------------------------------


class SRVGGNetCompact(UpscalerNetwork):
    """A plain chain of convolutions; what it makes is added to the picture, enlarged by its nearest neighbours."""

    def __init__(self, *, features: int, convolutions: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(_convolution(COLOURS, features), nn.PReLU(features))
        for _ in range(convolutions):
            self.body.append(_convolution(features, features))
            self.body.append(nn.PReLU(features))
        self.body.append(_convolution(features, COLOURS * scale**2))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        made = functional.pixel_shuffle(self.body(given), self.scale)
        return made + functional.interpolate(given, scale_factor=self.scale, mode="nearest")


def _convolution(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def _leaky(values: torch.Tensor) -> torch.Tensor:
    return functional.leaky_relu(values, 0.2, inplace=not torch.is_grad_enabled())


# --- from a file -----------------------------------------------------------------------------------------------------


def load_upscaler(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> UpscalerNetwork:
    """Read a safetensors file.

    Args:
        dtype: What the network computes in. A1111 runs ESRGAN in full precision on a card too.
    Raises:
        UpscalerError: The file cannot be read, or is none of the family.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UpscalerError(f"{path.name} is not a readable safetensors file: {error}.") from error
    return network_of(tensors).to(device=device, dtype=dtype).eval().requires_grad_(False)


def network_of(tensors: Mapping[str, torch.Tensor]) -> UpscalerNetwork:
    """The network those weights belong to, holding them as they are.

    Raises:
        UpscalerError: None is known that they fit.
    """
    names = _unwrapped(tensors)
    weights = names if "body.0.weight" in names else _rrdb_names(names)
    if not weights:
        raise UpscalerError(f"No upscaler of the ESRGAN family: the file looks like {_looks_like(names)}.")
    with torch.device("meta"):
        network: UpscalerNetwork = _compact(weights) if "body.0.weight" in weights else _rrdb(weights)
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UpscalerError(f"The weights do not fit together as {type(network).__name__}: {error}") from error
    return network


def _unwrapped(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = dict(tensors)
    for wrapper in WRAPPERS:
        inner = {name.removeprefix(wrapper): tensor for name, tensor in names.items() if name.startswith(wrapper)}
        names = inner or names
    return names


def _compact(weights: Mapping[str, torch.Tensor]) -> SRVGGNetCompact:
    """Convolutions and PReLUs take turns and both have weights, so the last number is one less than their count."""
    last = sum(bool(re.fullmatch(r"body\.\d+\.weight", name)) for name in weights) - 1
    features, colours = _shape(weights, "body.0.weight")[:2]
    if colours != COLOURS or last < 2 or last % 2:
        raise UpscalerError("The file looks like SRVGGNetCompact, but for other than three colours or without PReLU.")
    scale = _root(_shape(weights, f"body.{last}.weight")[0])
    return SRVGGNetCompact(features=features, convolutions=last // 2 - 1, scale=scale)


def _rrdb(weights: Mapping[str, torch.Tensor]) -> RRDBNet:
    features, channels = _shape(weights, "conv_first.weight")[:2]
    doublings = sum(bool(re.fullmatch(r"conv_up\d+\.weight", name)) for name in weights)
    unshuffle = _root(channels)
    if 2**doublings > MAX_SCALE or 2**doublings % unshuffle:
        raise UpscalerError(f"RRDBNet with {doublings} enlargements and {channels} input channels is not known.")
    return RRDBNet(
        features=features,
        growth=_shape(weights, "body.0.rdb1.conv1.weight")[0],
        blocks=len({name.split(".")[1] for name in weights if name.startswith("body.")}),
        doublings=doublings,
        unshuffle=unshuffle,
    )


def _shape(weights: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...]:
    """Of a convolution."""
    tensor = weights.get(name)
    if tensor is None or tensor.dim() != 4:
        raise UpscalerError(f"{name!r} is missing or no convolution.")
    return tuple(tensor.shape)


def _root(channels: int) -> int:
    """n, of n × n pixels in all colours."""
    root = math.isqrt(channels // COLOURS)
    if root**2 * COLOURS != channels or not 1 <= root <= MAX_SCALE:
        raise UpscalerError(f"{channels} channels are no square of pixels in {COLOURS} colours.")
    return root


# --- spellings of RRDBNet --------------------------------------------------------------------------------------------

BSRGAN = {
    r"RRDB_trunk\.(\d+)\.RDB(\d)\.": r"body.\1.rdb\2.",
    r"trunk_conv\.": "conv_body.",
    r"upconv(\d+)\.": r"conv_up\1.",
    r"HRconv\.": "conv_hr.",
}
FIRST_BLOCK = re.compile(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(weight|bias)")
FIRST_PLAIN = re.compile(r"model\.(\d+|1\.sub\.\d+)\.(weight|bias)")


def _rrdb_names(names: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as Real-ESRGAN names them; empty when they are no RRDBNet."""
    if "model.0.weight" in names and "model.1.sub.0.RDB1.conv1.0.weight" in names:
        return _from_first_esrgan(names)
    renamed = {_with(BSRGAN, name): tensor for name, tensor in names.items()}
    return renamed if {"conv_first.weight", "body.0.rdb1.conv1.weight"} <= renamed.keys() else {}


def _with(spelling: Mapping[str, str], name: str) -> str:
    for pattern, replacement in spelling.items():
        name = re.sub(f"^{pattern}", replacement, name)
    return name


def _from_first_esrgan(names: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Layers are numbered through: 0, the trunk, then those of the enlargements, the last two of the picture."""
    plain: dict[str, str] = {}
    numbers = sorted(
        {match[1] for name in names if (match := FIRST_PLAIN.fullmatch(name)) and match[1].isdigit()}, key=int
    )
    for index, number in enumerate(numbers[1:-2], start=1):
        plain[number] = f"conv_up{index}"
    plain |= dict(zip((numbers[0], *numbers[-2:]), ("conv_first", "conv_hr", "conv_last"), strict=False))
    renamed = {}
    for name, tensor in names.items():
        if match := FIRST_BLOCK.fullmatch(name):
            name = f"body.{match[1]}.rdb{match[2]}.conv{match[3]}.{match[4]}"
        elif match := FIRST_PLAIN.fullmatch(name):
            name = f"{plain.get(match[1], 'conv_body')}.{match[2]}"
        renamed[name] = tensor
    return renamed


def _looks_like(names: Mapping[str, torch.Tensor]) -> str:
    for title, pattern in FOREIGN.items():
        if any(re.match(pattern, name) for name in names):
            return title
    return f"nothing known; its first weight is {next(iter(names), 'missing')!r}"
