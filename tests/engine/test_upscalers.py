"""Upscalers: the spellings of a network, tiles, roundings, extras; against A1111's recorded pictures where they lie there."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from gpuworker.contract import ExtrasRecipe, InputPicture, Settings
from gpuworker.contract.extras import extras_html, extras_text
from gpuworker.contract.recipe import LATENT_MODES
from gpuworker.engine.errors import ComponentMissingError, InvalidSpecError, UpscalerError
from gpuworker.engine.images.extras import render_extras
from gpuworker.engine.images.upscale import (
    BUILT_IN,
    StopSeen,
    Tiles,
    Upscaler,
    enlarge,
    resized_to,
    tiled,
    upscale,
    upscale_latents,
    upscaler_of,
)
from gpuworker.engine.models.upscalers import RRDBNet, SRVGGNetCompact, UpscalerNetwork, load_upscaler, network_of
from tests.engine.recordings import MORE, REFERENCE, needs_recordings

Tensors = dict[str, torch.Tensor]

# --- files of weights ------------------------------------------------------------------------------------------------


def random_rrdb(*, doublings: int = 2, unshuffle: int = 1, blocks: int = 2) -> Tensors:
    torch.manual_seed(doublings + 10 * unshuffle)
    network = RRDBNet(features=4, growth=2, blocks=blocks, doublings=doublings, unshuffle=unshuffle)
    return {name: tensor.half() for name, tensor in network.state_dict().items()}


def as_bsrgan(tensors: Tensors) -> Tensors:
    words = {"conv_body": "trunk_conv", "body.": "RRDB_trunk.", "rdb": "RDB", "conv_up": "upconv", "conv_hr": "HRconv"}
    return _renamed(tensors, words)


def as_first_esrgan(tensors: Tensors) -> Tensors:
    """Layers of a doubling: the enlargement, its convolution, its activation."""
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("body.")})
    doublings = sum(name.startswith("conv_up") for name in tensors) // 2
    words = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}", "body.": "model.1.sub.", "rdb": "RDB"}
    words |= {f"conv_up{index}": f"model.{3 * index}" for index in range(1, doublings + 1)}
    words |= {"conv_hr": f"model.{3 * doublings + 2}", "conv_last": f"model.{3 * doublings + 4}"}
    made = {}
    for name, tensor in _renamed(tensors, words).items():
        if "RDB" in name:
            layer, kind = name.rsplit(".", 1)
            name = f"{layer}.0.{kind}"
        made[name] = tensor
    return made


def _renamed(tensors: Tensors, words: dict[str, str]) -> Tensors:
    made = {}
    for name, tensor in tensors.items():
        for word, other in words.items():
            name = name.replace(word, other)
        made[name] = tensor
    return made


def wrapped(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def picture_of(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = len(mode)
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(values.squeeze(), mode=mode)


@pytest.mark.parametrize("doublings", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "spelling", [as_first_esrgan, as_bsrgan, wrapped("params_ema."), wrapped("params."), wrapped("module.")]
)
def test_every_spelling_gives_the_same_network(spelling: Callable[[Tensors], Tensors], doublings: int) -> None:
    tensors = random_rrdb(doublings=doublings)
    network = network_of(spelling(tensors))
    assert network.scale == 2**doublings
    assert network.state_dict().keys() == tensors.keys()
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(("unshuffle", "scale"), [(2, 2), (4, 1)])
def test_scale_of_a_network_with_unshuffled_input(unshuffle: int, scale: int) -> None:
    network = network_of(random_rrdb(unshuffle=unshuffle)).float()
    assert network.scale == scale
    assert network(torch.zeros(1, 3, 9, 11)).shape == (1, 3, 9 * scale, 11 * scale)


def test_averaged_weights_win_over_plain_ones() -> None:
    averaged, plain = random_rrdb(), random_rrdb(doublings=1)
    assert network_of(wrapped("params.")(plain) | wrapped("params_ema.")(averaged)).scale == 4


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_compact_network_adds_to_the_nearest_neighbours(scale: int) -> None:
    tensors = SRVGGNetCompact(features=4, convolutions=2, scale=scale).state_dict()
    last = max(tensors, key=lambda name: int(name.split(".")[1]))
    still = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    network, picture = network_of(wrapped("params.")(still)), torch.rand(1, 3, 5, 6)
    assert isinstance(network, SRVGGNetCompact) and network.scale == scale and last in tensors
    assert torch.equal(network(picture), functional.interpolate(picture, scale_factor=scale, mode="nearest"))


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        (["layers.0.residual_group.blocks.0.norm1.weight"], "SwinIR"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "diffusion checkpoint"),
        (["stylegan_decoder.style_mlp.1.weight"], "GFPGAN"),
        (["something.weight"], "something.weight"),
        ([], "missing"),
    ],
)
def test_another_architecture_is_named(keys: list[str], word: str) -> None:
    with pytest.raises(UpscalerError, match=word):
        network_of({key: torch.zeros(1) for key in keys})


@pytest.mark.parametrize(
    "change",
    [
        {"conv_first.weight": torch.zeros(4, 5, 3, 3)},
        {"conv_first.weight": torch.zeros(4)},
        {"conv_hr.weight": torch.zeros(4, 9, 3, 3)},
        {"body.900000000.rdb1.conv1.weight": torch.zeros(2, 4, 3, 3)},
        {f"conv_up{index}.weight": torch.zeros(4, 4, 3, 3) for index in range(3, 9)},
    ],
)
def test_weights_that_do_not_fit_are_an_error(change: Tensors) -> None:
    with pytest.raises(UpscalerError):
        network_of(random_rrdb() | change)


@pytest.mark.parametrize(
    "tensors",
    [
        {"body.0.weight": torch.zeros(4, 1, 3, 3)},
        {"body.0.weight": torch.zeros(4, 3, 3, 3), "body.70.weight": torch.zeros(1), "body.71.weight": torch.zeros(1)},
        {"body.0.weight": torch.zeros(3)},
    ],
)
def test_a_compact_network_that_does_not_fit_is_an_error(tensors: Tensors) -> None:
    with pytest.raises(UpscalerError):
        network_of(tensors)


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    with pytest.raises(UpscalerError, match=r"broken\.safetensors"):
        load_upscaler(tmp_path / "broken.safetensors")
    with pytest.raises(UpscalerError, match=r"absent\.safetensors"):
        load_upscaler(tmp_path / "absent.safetensors")


def test_a_file_is_computed_in_full_precision(tmp_path: Path) -> None:
    save_file(random_rrdb(), tmp_path / "x4.safetensors")
    network = load_upscaler(tmp_path / "x4.safetensors")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


# --- repeats and roundings -------------------------------------------------------------------------------------------


class Doubling:
    """An upscaler that doubles, or what else is asked, and counts."""

    def __init__(self, scale: int = 2) -> None:
        self.calls, self.scale = 0, scale

    def __call__(self, picture: Image.Image, factor: float) -> Image.Image:
        self.calls += 1
        return picture.resize((picture.width * self.scale, picture.height * self.scale), Image.Resampling.NEAREST)


@pytest.mark.parametrize(
    ("factor", "calls", "size"),
    [
        (0.5, 0, (32, 24)),
        (1, 1, (64, 48)),
        (1.5, 1, (96, 72)),
        (2, 1, (128, 96)),
        (3, 2, (192, 144)),
        (20, 3, (1280, 960)),
    ],
)
def test_an_upscaler_is_repeated_until_it_is_enough(factor: float, calls: int, size: tuple[int, int]) -> None:
    doubling = Doubling()
    assert upscale(picture_of(64, 48), factor, Upscaler("doubling", doubling)).size == size
    assert doubling.calls == calls


def test_an_upscaler_that_changes_no_size_is_applied_once() -> None:
    same = Doubling(scale=1)
    assert upscale(picture_of(16, 16), 4, Upscaler("same", same)).size == (64, 64)
    assert same.calls == 1


@pytest.mark.parametrize("factor", [0, -2.0, 0.1, 1e6, float("inf"), float("nan")])
def test_an_impossible_factor_is_an_error(factor: float) -> None:
    with pytest.raises(InvalidSpecError):
        upscale(picture_of(64, 64), factor, BUILT_IN["Lanczos"])


def test_an_unknown_upscaler_is_an_error() -> None:
    with pytest.raises(InvalidSpecError, match="nothing"):
        upscaler_of("nothing", None, Settings())


def test_only_growing_pictures_go_through_the_upscaler() -> None:
    doubling = Doubling()
    upscaler = Upscaler("doubling", doubling)
    assert resized_to(picture_of(64, 64), 64, 32, upscaler).size == (64, 32)
    assert resized_to(picture_of(64, 64, "L"), 128, 128, upscaler).size == (128, 128)
    assert doubling.calls == 0
    assert enlarge(np.asarray(picture_of(64, 64)), 100, 36, upscaler).shape == (36, 100, 3)
    assert doubling.calls == 1


def test_no_upscaler_is_one_lanczos() -> None:
    picture = picture_of(24, 24)
    expected = np.asarray(picture.resize((60, 30), Image.Resampling.LANCZOS))
    assert np.array_equal(enlarge(np.asarray(picture), 60, 30, None), expected)


# --- tiles -----------------------------------------------------------------------------------------------------------


class Repeating(UpscalerNetwork):
    """Each pixel becomes a square; counts the tiles it saw."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale, self.tiles = scale, 0
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        self.tiles += len(given)
        return functional.interpolate(given, scale_factor=self.scale, mode="nearest")


@pytest.mark.parametrize("overlap", [0, 4])
@pytest.mark.parametrize("size", [(16, 16), (50, 37), (9, 90), (3, 2)])
def test_tiles_of_a_faithful_network_make_the_whole_picture(size: tuple[int, int], overlap: int) -> None:
    picture = picture_of(*size)
    whole = tiled(Repeating(2), picture, Tiles(16, overlap))
    assert np.array_equal(whole, np.asarray(picture).repeat(2, 0).repeat(2, 1))


def test_tiles_are_spread_evenly_and_end_with_the_picture() -> None:
    assert Tiles(192, 8).starts(500) == [0, 154, 308]
    assert Tiles(192, 8).starts(192) == [0]
    assert Tiles(192, 8).starts(64) == [-128]


def test_size_0_is_the_whole_picture_at_once() -> None:
    network = Repeating(3)
    assert tiled(network, picture_of(300, 40, "L"), Tiles(0, 8)).size == (900, 120)
    assert network.tiles == 1


def test_tiles_cannot_overlap_by_their_size() -> None:
    with pytest.raises(InvalidSpecError):
        upscaler_of("x", Repeating(2), Settings(ESRGAN_tile=16, ESRGAN_tile_overlap=16))


def test_the_stop_flag_ends_tiling() -> None:
    network = Repeating(2)
    with pytest.raises(StopSeen):
        tiled(network, picture_of(64, 64), Tiles(16, 0), should_stop=lambda: network.tiles == 3)
    assert network.tiles == 3


# --- latents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LATENT_MODES)
def test_latents_get_the_wanted_size_in_every_mode(mode: str) -> None:
    assert upscale_latents(torch.rand(2, 4, 8, 9), mode, (12, 15)).shape == (2, 4, 12, 15)


def test_latent_modes_differ() -> None:
    latents = torch.rand(1, 4, 8, 8)
    made = [upscale_latents(latents, mode, (13, 5)) for mode in LATENT_MODES]
    assert not any(torch.equal(one, other) for index, one in enumerate(made) for other in made[:index])


# --- extras ----------------------------------------------------------------------------------------------------------


def extras_recipe(**changes: Any) -> ExtrasRecipe:
    return ExtrasRecipe(picture=InputPicture(sha256="0", width=1, height=1), **changes)


def test_extras_without_an_upscaler_leave_the_picture_alone() -> None:
    picture = picture_of(30, 20, "RGBA")
    made = render_extras(extras_recipe(upscaler_2="Lanczos", extras_upscaler_2_visibility=1.0), picture, {})
    assert (made.mode, made.width, made.height, made.pixels) == ("RGBA", 30, 20, picture.tobytes())


def test_transparency_survives_where_no_network_takes_part() -> None:
    made = render_extras(extras_recipe(upscaler_1="Lanczos"), picture_of(32, 32, "RGBA"), BUILT_IN)
    assert (made.mode, made.width, len(made.pixels)) == ("RGBA", 64, 64 * 64 * 4)


@pytest.mark.parametrize("name", ["gfpgan_visibility", "codeformer_visibility"])
def test_faces_without_their_component_are_an_error(name: str) -> None:
    with pytest.raises(ComponentMissingError, match="not installed"):
        render_extras(extras_recipe(**{name: 0.5}), picture_of(8, 8), {})


def test_restored_faces_are_blended_in() -> None:
    white: dict[str, Any] = {"GFPGAN": lambda pixels, weight: np.full_like(pixels, 255)}
    black = Image.new("RGB", (4, 4))
    made = render_extras(extras_recipe(gfpgan_visibility=0.6), black, {}, white)
    assert made.pixels == bytes([153]) * 48


def test_names_with_commas_are_quoted_and_escaped() -> None:
    text = extras_text(
        extras_recipe(upscaler_1="a, <b>", upscaling_resize=2.0, gfpgan_visibility=0.12345, codeformer_visibility=1.0)
    )
    assert text == (
        'Postprocess upscale by: 2.0, Postprocess upscaler: "a, <b>", '
        "GFPGAN visibility: 0.123, CodeFormer visibility: 1.0, CodeFormer weight: 0.0"
    )
    assert extras_html("a\n<b>") == "<p>a<br>\n&lt;b&gt;</p>"


def test_a_factor_that_was_not_sent_is_a_whole_number():
    assert extras_text(extras_recipe(upscaler_1="Lanczos", upscaling_resize=2)).startswith(
        "Postprocess upscale by: 2, "
    )
    assert extras_text(extras_recipe()) == ""


# --- recorded --------------------------------------------------------------------------------------------------------

CASES = MORE / "upscalers" / "cases"
EXTRAS_FIELDS = {field.name for field in fields(ExtrasRecipe)} - {"picture"}


def recorded_names() -> list[str]:
    found = sorted(path.name for path in CASES.glob("*") if path.name.startswith(("single_", "batch_")))
    return [name for name in found if "image_0.png" in {path.name for path in (CASES / name).iterdir()}]


@cache
def recorded_network(name: str) -> UpscalerNetwork:
    loaded = torch.load(REFERENCE / "tiny-esrgan" / f"{name}.pth", weights_only=True)
    nested = {f"{outer}.": inner for outer, inner in loaded.items() if isinstance(inner, dict)} or {"": loaded}
    return network_of({p + key: value for p, part in nested.items() for key, value in part.items()}).float()


def recorded_upscaler(name: str) -> Upscaler:
    return upscaler_of(name, recorded_network(name) if name.startswith("tiny-") else None, Settings())


@needs_recordings
@pytest.mark.parametrize("case", recorded_names())
def test_recorded_extras(case: str) -> None:
    body = json.loads((CASES / case / "request.json").read_text())
    answer = json.loads((CASES / case / "response.json").read_text())
    fields = {name: value for name, value in body.items() if name in EXTRAS_FIELDS}
    if "upscaling_resize" in fields:
        fields["upscaling_resize"] = float(fields["upscaling_resize"])  # as the door reads what is sent
    recipe = extras_recipe(**fields)
    assert extras_html(extras_text(recipe)) == answer["html_info"]
    upscalers = {name: recorded_upscaler(name) for name in (recipe.upscaler_1, recipe.upscaler_2)}
    sent = [body["image"]] if "image" in body else [entry["data"] for entry in body["imageList"]]
    for index, data in enumerate(sent):
        made = render_extras(recipe, Image.open(io.BytesIO(base64.b64decode(data))), upscalers)
        expected = Image.open(CASES / case / f"image_{index}.png")
        assert (made.mode, made.width, made.height) == (expected.mode, *expected.size)
        difference = np.frombuffer(made.pixels, np.uint8).astype(int) - np.asarray(expected, int).ravel()
        assert np.abs(difference).max() <= 1
