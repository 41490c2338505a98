"""Control units in the engine: where residuals act, what is kept apart, and what a unit that cannot be used does to an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gpuworker.contract import ControlUnit, DetectRecipe, InputPicture, Recipe, RenderSpec, WeightsFile
from gpuworker.contract.control_modules import AVAILABLE, BY_NAME, MODULES
from gpuworker.engine.errors import CheckpointError, InvalidSpecError
from gpuworker.engine.images.controlnet import preprocess
from gpuworker.engine.images.controlnet.fitting import CROP, FILL, JUST, fitted
from gpuworker.engine.images.controlnet.preprocess import detected
from gpuworker.engine.models.controlnets import load_controlnet
from gpuworker.engine.models.loader import load_checkpoint
from gpuworker.engine.sampling.control import UnitOfPass
from tests.engine.recordings import sha256_of, weights_of

MINIATURE = Path(__file__).resolve().parents[2] / "miniature"
CHECKPOINT, CANNY = MINIATURE / "renderkiln-miniature.safetensors", MINIATURE / "miniature-canny.safetensors"
CPU = torch.device("cpu")


def a_picture(path: Path, *, size: int = 64, mode: str = "RGB") -> InputPicture:
    """A white disc on black."""
    from PIL import Image, ImageDraw

    picture = Image.new(mode, (size, size))
    ImageDraw.Draw(picture).ellipse((size // 4, size // 4, 3 * size // 4, 3 * size // 4), fill="white")
    picture.save(path)
    return InputPicture(sha256=sha256_of(path), width=size, height=size)


@pytest.fixture
def inputs(tmp_path) -> dict[str, Path]:
    return {a_picture(tmp_path / "disc.png").sha256: tmp_path / "disc.png"}


def a_unit(inputs: dict[str, Path], **changes: object) -> ControlUnit:
    (sha256,) = inputs
    picture = InputPicture(sha256=sha256, width=64, height=64)
    return ControlUnit(module="canny", model="miniature-canny", weights=weights_of(CANNY), picture=picture, **changes)


def a_recipe(*units: ControlUnit, **changes: object) -> Recipe:
    values = {"prompt": "a red circle on blue", "negative_prompt": "", "seed": 5, "subseed": 0, "sampler": "Euler", "steps": 4,
              "cfg_scale": 5.0, "width": 64, "height": 64}  # fmt: skip
    return Recipe(checkpoint=weights_of(CHECKPOINT), control=units, **{**values, **changes})


def render(renderer, inputs, *recipes):
    files = {use.sha256: WeightsFile(path) for path in (CHECKPOINT, CANNY) for use in [weights_of(path)]}
    spec = RenderSpec(tuple(recipes), files, inputs)
    return list(renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False))


def pixels(outcome) -> bytes:
    return outcome.picture.pixels


# --- what a unit does -------------------------------------------------------------------------------------------------


def test_a_unit_changes_the_picture_and_its_weight_of_zero_does_not(renderer, inputs):
    plain, none, led = (
        render(renderer, inputs, recipe)[0]
        for recipe in (a_recipe(), a_recipe(a_unit(inputs, weight=0.0)), a_recipe(a_unit(inputs)))
    )
    assert pixels(plain) == pixels(none) != pixels(led)


def test_two_units_of_half_the_weight_are_nearly_one_of_the_whole(renderer, inputs):
    half = a_unit(inputs, weight=0.5)
    (twice,), (once,) = (render(renderer, inputs, a_recipe(*units)) for units in ((half, half), (a_unit(inputs),)))
    assert np.abs(values(twice) - values(once)).max() <= 1


def test_nothing_of_a_unit_stays_behind(renderer, inputs):
    before = pixels(render(renderer, inputs, a_recipe())[0])
    render(renderer, inputs, a_recipe(a_unit(inputs)))
    assert pixels(render(renderer, inputs, a_recipe())[0]) == before


@pytest.mark.parametrize("module", ["reference_only", "reference_adain", "reference_adain+attn"])
def test_a_reference_leads_and_goes_without_a_trace(renderer, inputs, module):
    before = pixels(render(renderer, inputs, a_recipe())[0])
    unit = replace(a_unit(inputs), module=module, weights=None, model="None")
    assert pixels(render(renderer, inputs, a_recipe(unit))[0]) != before
    assert pixels(render(renderer, inputs, a_recipe())[0]) == before


def test_images_with_pictures_of_their_own_share_a_pass_and_keep_apart(renderer, inputs, tmp_path):
    other = a_picture(tmp_path / "blank.png", size=64, mode="RGB")
    own = a_recipe(a_unit(inputs))
    unit = replace(a_unit(inputs), picture=other)
    inputs = {**inputs, other.sha256: tmp_path / "blank.png"}
    together = render(renderer, inputs, own, replace(own, control=(unit,), seed=6))
    alone = [render(renderer, inputs, own), render(renderer, inputs, replace(own, control=(unit,), seed=6))]
    assert all(np.abs(values(one) - values(other[0])).max() <= 1 for one, other in zip(together, alone, strict=True))


def test_exact_mode_gives_the_same_bytes_with_any_companion(renderer, inputs):
    own = a_recipe(a_unit(inputs), exact=True)
    alone, beside = render(renderer, inputs, own)[0], render(renderer, inputs, own, replace(own, seed=9))[0]
    assert pixels(alone) == pixels(beside)


def test_a_window_that_is_over_before_the_end_acts_less(renderer, inputs):
    early = render(renderer, inputs, a_recipe(a_unit(inputs, guidance_end=0.0)))[0]
    assert pixels(early) not in (
        pixels(render(renderer, inputs, recipe)[0]) for recipe in (a_recipe(), a_recipe(a_unit(inputs)))
    )


def test_the_map_comes_along_once_per_unit_unless_it_is_not_wanted(renderer, inputs):
    shown = render(renderer, inputs, a_recipe(a_unit(inputs), a_unit(inputs, save_detected_map=False)))[0]
    (only,) = shown.attachments
    assert (only.role, only.picture.width, only.picture.height) == ("control_map", 64, 64)


def values(outcome) -> np.ndarray:
    return np.frombuffer(outcome.picture.pixels, np.uint8).astype(int)


# --- units that cannot be used ----------------------------------------------------------------------------------------


def unusable(inputs: dict[str, Path], tmp_path: Path) -> dict[str, ControlUnit]:
    grey = a_picture(tmp_path / "grey.png", mode="L")
    inputs[grey.sha256] = tmp_path / "grey.png"
    unit = a_unit({sha256: path for sha256, path in inputs.items() if sha256 != grey.sha256})
    return {
        "has no picture": replace(unit, picture=None),
        "is not known": replace(unit, weights=None, model="nobody"),
        "has to be in RGB": replace(unit, effective_region_mask=grey),
    }


@pytest.mark.parametrize("reason", ["has no picture", "is not known", "has to be in RGB"])
def test_one_unit_that_cannot_be_used_takes_all_with_it_and_the_image_says_so(renderer, inputs, tmp_path, reason):
    good, bad = a_unit(inputs), unusable(inputs, tmp_path)[reason]
    outcome = render(renderer, inputs, a_recipe(good, bad))[0]
    assert pixels(outcome) == pixels(render(renderer, inputs, a_recipe())[0])
    assert outcome.attachments == () and any(reason in sentence for sentence in outcome.warnings)


def test_a_mask_of_another_size_fails_its_image_alone(renderer, inputs, tmp_path):
    small = a_picture(tmp_path / "small.png", size=32)
    good = a_recipe(
        replace(a_unit(inputs), mask=InputPicture(sha256=a_unit(inputs).picture.sha256, width=64, height=64))
    )
    bad = replace(good, control=(replace(good.control[0], mask=replace(small, width=64, height=64)),))
    outcomes = render(renderer, {**inputs, small.sha256: tmp_path / "small.png"}, good, bad)
    assert [type(outcome).__name__ for outcome in outcomes] == ["Rendered", "Failed"]
    assert "32×32" in outcomes[1].message


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(CHECKPOINT, device=CPU, dtype=torch.float32)


def test_both_key_layouts_give_one_network(checkpoint, tmp_path):
    original = load_controlnet(CANNY, like=checkpoint, device=CPU, dtype=torch.float32)
    encoder = {f"controlnet_cond_embedding.{name}": value for name, value in original.hint_encoder.state_dict().items()}
    tensors = {name: value.contiguous() for name, value in {**original.model.state_dict(), **encoder}.items()}
    save_file(tensors, tmp_path / "diffusers.safetensors")
    other = load_controlnet(tmp_path / "diffusers.safetensors", like=checkpoint, device=CPU, dtype=torch.float32)
    theirs = other.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in original.model.state_dict().items())


def test_a_file_that_is_no_controlnet_is_refused_by_what_it_lacks(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="nothing in it reads a map"):
        load_controlnet(CHECKPOINT, like=checkpoint, device=CPU, dtype=torch.float32)
    tensors = load_file(CANNY)
    tensors.pop(next(name for name in tensors if "zero_convs.1" in name))
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match="lacks"):
        load_controlnet(tmp_path / "part.safetensors", like=checkpoint, device=CPU, dtype=torch.float32)


# --- weights of residuals ---------------------------------------------------------------------------------------------


def of_pass(**changes: object) -> UnitOfPass:
    hires = bool(changes.pop("hires", False))
    return UnitOfPass(unit=ControlUnit(**changes), hires=hires)


def test_my_prompt_is_more_important_fades_towards_the_first_residual():
    scales = of_pass(control_mode="My prompt is more important", weight=2.0).scales(13)
    assert scales == [2.0 * 0.825 ** (12 - index) for index in range(13)]


def test_sdxls_ten_residuals_are_counted_from_the_thirteenth():
    assert of_pass(control_mode="ControlNet is more important").scales(10)[-1] == 0.825**3


@pytest.mark.parametrize(("module", "soft"), [("canny", True), ("mlsd", True), ("none", False)])
def test_edges_are_soft_in_the_hires_pass(module, soft):
    assert (of_pass(module=module, hires=True).scales(13)[0] < 1) is soft


def test_advanced_weights_are_taken_as_they_are_and_what_is_missing_is_nothing():
    assert of_pass(advanced_weighting=(1.0, 0.5), weight=9.0).scales(4) == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("option", "first", "second"), [("Both", True, True), ("Low res only", True, False), ("High res only", False, True)]
)
def test_hires_option_says_in_which_pass_a_unit_acts(option, first, second):
    assert of_pass(hr_option=option).acts_at(0.5) is first
    assert of_pass(hr_option=option, hires=True).acts_at(0.5) is second


@pytest.mark.parametrize("option", ["Both", "Low res only", "High res only"])
def test_without_hires_fix_the_option_has_no_effect(option):
    assert UnitOfPass(unit=ControlUnit(hr_option=option), alone=True).acts_at(0.5)


@pytest.mark.parametrize(("progress", "acts"), [(0.19, False), (0.2, True), (0.7, True), (0.71, False)])
def test_both_ends_of_the_guidance_window_belong_to_it(progress, acts):
    assert of_pass(guidance_start=0.2, guidance_end=0.7).acts_at(progress) is acts


# --- maps -------------------------------------------------------------------------------------------------------------


def test_every_module_that_is_said_to_be_here_is_here():
    assert set(preprocess.MODULES) == AVAILABLE <= {module.name for module in MODULES}


@pytest.mark.parametrize("module", sorted(AVAILABLE))
@pytest.mark.parametrize("size", [(1, 1), (7, 130), (200, 3)], ids=["1x1", "wide", "tall"])
def test_every_module_takes_a_picture_of_any_size(module, size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    a, b = BY_NAME[module].values(-1, -1, -1)[1:]
    made = detected(module, picture, resolution=64, threshold_a=a, threshold_b=b, seed=1)
    assert made.dtype == np.uint8 and made.ndim == 3 and min(made.shape) > 0


def test_an_unknown_module_is_named():
    with pytest.raises(InvalidSpecError, match="'nothing' is not available"):
        detected("nothing", np.zeros((8, 8, 3), dtype=np.uint8))


def test_shuffle_follows_its_seed():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    one, same, other = (detected("shuffle", picture, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


@pytest.mark.parametrize("resize_mode", [JUST, CROP, FILL])
@pytest.mark.parametrize("size", [(64, 64), (40, 96), (200, 48)])
def test_a_map_has_the_size_of_the_canvas(resize_mode, size):
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    assert fitted(picture, resize_mode, *size).shape == (*size, 3)


def test_lines_of_one_pixel_stay_thin_when_a_map_grows():
    lines = np.zeros((32, 32, 3), dtype=np.uint8)
    lines[16] = 255
    grown = fitted(lines, JUST, 128, 128)
    assert set(np.unique(grown)) == {0, 255} and (grown[:, 64, 0] > 0).sum() <= 2


def test_colours_of_a_segmentation_do_not_mix():
    colours = np.random.default_rng(0).integers(0, 256, (5, 3), dtype=np.uint8)
    picture = colours[np.random.default_rng(1).integers(0, 5, (24, 24))]
    grown = fitted(picture, JUST, 100, 100)
    assert {tuple(pixel) for pixel in grown.reshape(-1, 3)} <= {tuple(colour) for colour in colours}


def test_a_map_of_a_picture_is_a_job_of_its_own(renderer, inputs):
    (sha256,) = inputs
    recipe = DetectRecipe(picture=InputPicture(sha256=sha256, width=64, height=64), module="canny", processor_res=64)
    (outcome,) = renderer.render(RenderSpec((recipe,), {}, inputs), on_step=lambda *_: None, should_stop=lambda: False)
    assert (outcome.picture.width, outcome.picture.height) == (64, 64) and 0 < values(outcome).mean() < 128
