"""Hooks through which a UNet sees a reference picture in its own attention and norms, with no network of its own.

Each call of the UNet on the noisy reference writes down what its blocks saw; the next call reads it. Gone when the pass ends.

Source: sd-webui-controlnet 1.1.455, ``reference_only`` and ``reference_adain`` of ``scripts/hook.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from diffusers.models.attention import BasicTransformerBlock

SMALLEST_FIDELITY = 1e-5
SMALLEST_VARIANCE = 1e-6
ATTENTION_MODULES = ("reference_only", "reference_adain+attn")
NORM_MODULES = ("reference_adain", "reference_adain+attn")
NORM_INPUTS = {False: (4, 5, 7, 8, 10, 11), True: (4, 5, 7, 8)}
NORM_OUTPUTS = {False: 8, True: 6}
"""For SDXL or not: which blocks' outputs take on the reference's means and variances, numbered as in the original layout."""


class ReferenceHooks:
    """All hooks of one UNet."""

    def __init__(self, unet: Any, *, exact: bool = False) -> None:
        """
        Args:
            exact: Every call inside the UNet keeps its shape, however many rows are negative.
        """
        self._unet = unet
        self._exact = exact
        self._open = ExitStack()
        self._negative: list[int] = []
        self._written: tuple[str, float, float] | None = None
        """Module, weight and style fidelity of the reference that is being shown."""
        self._banks: list[_Bank] = []

    def __enter__(self) -> Self:
        self._hook()
        return self

    def __exit__(self, *failure: object) -> None:
        self._open.close()

    def follow(self, unet: Any) -> None:
        """Leave this UNet for another of the same build."""
        self._open.close()
        self._banks.clear()
        self._unet = unet
        self._hook()

    def _hook(self) -> None:
        blocks: list[Any] = [
            module
            for part in _parts(self._unet)
            for module in part.modules()
            if isinstance(module, BasicTransformerBlock)
        ]
        # The deepest first; a weight below 1 leaves out the shallow ones.
        blocks.sort(key=lambda block: -block.norm1.normalized_shape[0])
        for place, block in enumerate(blocks):
            self._hook_attention(block.attn1, place / len(blocks))
        for module, threshold in _normed_blocks(self._unet):
            self._hook_norm(module, threshold)

    def begin(self, negative: list[int]) -> None:
        """Forget the references of the last call.

        Args:
            negative: Rows of negative prompts in this one.
        """
        self._negative = negative
        for bank in self._banks:
            bank.clear()

    @contextmanager
    def writing(self, module: str, weight: float, style_fidelity: float) -> Iterator[None]:
        """While this is open, the UNet is being run on a reference."""
        self._written = module, weight, style_fidelity
        try:
            yield
        finally:
            self._written = None

    def _bank(self, modules: Sequence[str], threshold: float) -> _Bank:
        bank = _Bank(modules, threshold)
        self._banks.append(bank)
        return bank

    # --- attention ---------------------------------------------------------------------------------------------------

    def _hook_attention(self, attention: Any, threshold: float) -> None:
        bank, own = self._bank(ATTENTION_MODULES, threshold), attention.processor

        def processor(
            attn: Any, hidden: torch.Tensor, encoder_hidden_states: Any = None, *rest: Any, **more: Any
        ) -> Any:
            if self._written is not None:
                bank.keep(self._written, hidden)
            elif bank.kept:
                return self._led(bank, hidden, lambda rows, context: own(attn, rows, context, *rest, **more))
            return own(attn, hidden, encoder_hidden_states, *rest, **more)

        attention.processor = processor
        self._open.callback(setattr, attention, "processor", own)

    def _led(
        self, bank: _Bank, hidden: torch.Tensor, attend: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    ) -> torch.Tensor:
        """Attention that sees the references beside the picture."""
        led = attend(hidden, torch.cat([hidden, *bank.kept], dim=1))
        return self._mixed(bank, led, lambda rows: attend(hidden[rows], None))

    def _mixed(self, bank: _Bank, led: torch.Tensor, plain: Callable[[list[int]], torch.Tensor]) -> torch.Tensor:
        """Let the negative half go its own way as far as the style's fidelity says."""
        fidelity = bank.fidelity
        apart = led
        if self._negative and fidelity > SMALLEST_FIDELITY:
            apart = led.clone()
            alone = plain(list(range(len(led))))[self._negative] if self._exact else plain(self._negative)
            apart[self._negative] = alone
        return fidelity * apart + (1 - fidelity) * led

    # --- norms -------------------------------------------------------------------------------------------------------

    def _hook_norm(self, module: torch.nn.Module, threshold: float) -> None:
        bank = self._bank(NORM_MODULES, threshold)

        def seen(_: torch.nn.Module, inputs: Any, output: Any) -> Any:
            values = output[0] if isinstance(output, tuple) else output
            if self._written is not None:
                bank.keep(self._written, values)
                return None
            if not bank.kept:
                return None
            changed = self._toned(bank, values)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        self._open.callback(module.register_forward_hook(seen).remove)

    def _toned(self, bank: _Bank, values: torch.Tensor) -> torch.Tensor:
        """The values with the references' mean and spread per channel."""
        spread, mean = torch.var_mean(values, dim=(2, 3), keepdim=True, correction=0)
        theirs = [torch.var_mean(kept, dim=(2, 3), keepdim=True, correction=0) for kept in bank.kept]
        their_spread = sum(one[0] for one in theirs) / len(theirs)
        their_mean = sum(one[1] for one in theirs) / len(theirs)
        toned = (values - mean) / _deviation(spread) * _deviation(their_spread) + their_mean
        return self._mixed(bank, toned, lambda rows: values[rows])


class _Bank:
    """What one place of the UNet saw of the references."""

    def __init__(self, modules: Sequence[str], threshold: float) -> None:
        self._modules = modules
        self._threshold = threshold
        self.kept: list[torch.Tensor] = []
        self._fidelities: list[float] = []

    def clear(self) -> None:
        self.kept.clear()
        self._fidelities.clear()

    def keep(self, written: tuple[str, float, float], values: torch.Tensor) -> None:
        module, weight, fidelity = written
        if module in self._modules and weight > self._threshold:
            self.kept.append(values)
            self._fidelities.append(fidelity)

    @property
    def fidelity(self) -> float:
        return sum(self._fidelities) / len(self._fidelities)


def _deviation(spread: Any) -> torch.Tensor:
    return spread.clamp(min=SMALLEST_VARIANCE) ** 0.5


def _parts(unet: Any) -> tuple[torch.nn.Module, ...]:
    """In the order of the original layout, which decides between blocks of one width."""
    return unet.down_blocks, unet.mid_block, unet.up_blocks


def _normed_blocks(unet: Any) -> Iterator[tuple[torch.nn.Module, float]]:
    """Each block whose output is toned, and the weight above which it is."""
    is_sdxl = unet.config.class_embed_type == "projection"
    inputs, outputs = list(_input_blocks(unet)), list(_output_blocks(unet))
    yield unet.mid_block, 0.0
    chosen = [index for index in NORM_INPUTS[is_sdxl] if index < len(inputs)]
    for place, index in enumerate(chosen):
        yield inputs[index], 2 * (1 - place / len(chosen))
    count = min(NORM_OUTPUTS[is_sdxl], len(outputs))
    for place in range(count):
        yield outputs[place], 2 * place / count


def _input_blocks(unet: Any) -> Iterator[torch.nn.Module]:
    """The last part of each input block of the original layout."""
    yield unet.conv_in
    for block in unet.down_blocks:
        yield from _ends(block)
        yield from block.downsamplers or ()


def _output_blocks(unet: Any) -> Iterator[torch.nn.Module]:
    for block in unet.up_blocks:
        ends = list(_ends(block))
        yield from ends[:-1]
        yield block.upsamplers[0] if block.upsamplers else ends[-1]


def _ends(block: Any) -> Iterator[torch.nn.Module]:
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    for resnet, attention in zip(block.resnets, attentions, strict=True):
        yield attention or resnet
