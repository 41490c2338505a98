"""Control units beside other images, other checkpoints and other makes of networks: who is failed, who is left alone, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gpuworker.contract import ControlUnit, Img2Img, InputPicture, Recipe, Refiner, RenderSpec, Weights, WeightsFile
from gpuworker.contract.families import recognise
from gpuworker.engine.errors import CheckpointError, ControlNetworkError
from gpuworker.engine.models.controlnets import load_controlnet, require_same_build
from gpuworker.engine.models.loader import load_checkpoint
from tests.engine.ldm import TINY, UNet, write_checkpoint
from tests.engine.recordings import sha256_of, weights_of

MINIATURE = Path(__file__).resolve().parents[2] / "miniature"
CHECKPOINT, CANNY = MINIATURE / "renderkiln-miniature.safetensors", MINIATURE / "miniature-canny.safetensors"
CPU = torch.device("cpu")


class Studio:
    """Files of weights and pictures of one test, and a way to render with them."""

    def __init__(self, renderer, folder: Path) -> None:
        self.renderer = renderer
        self.folder = folder
        self.weights: dict[str, WeightsFile] = {}
        self.inputs: dict[str, Path] = {}

    def use(self, path: Path, **changes: object) -> Weights:
        use = replace(weights_of(path), **changes)
        self.weights[use.sha256] = WeightsFile(path)
        return use

    def picture(self, colour: str) -> InputPicture:
        """A disc of that colour on black."""
        path = self.folder / f"{colour}.png"
        pixels = np.zeros((64, 64, 3), dtype=np.uint8)
        rows, columns = np.mgrid[:64, :64]
        pixels[(rows - 32) ** 2 + (columns - 32) ** 2 < 300] = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        Image.fromarray(pixels).save(path)
        self.inputs[sha256_of(path)] = path
        return InputPicture(sha256=sha256_of(path), width=64, height=64)

    def region(self, mode: str) -> InputPicture:
        """The whole canvas; in grey it switches control off."""
        path = self.folder / f"region-{mode}.png"
        Image.new(mode, (64, 64), "white").save(path)
        self.inputs[sha256_of(path)] = path
        return InputPicture(sha256=sha256_of(path), width=64, height=64)

    def unit(self, **changes: object) -> ControlUnit:
        values = {
            "module": "canny",
            "model": "miniature-canny",
            "weights": self.use(CANNY),
            "picture": self.picture("white"),
        }
        return ControlUnit(**{**values, **changes})

    def reference(self, **changes: object) -> ControlUnit:
        return self.unit(**{"module": "reference_only", "model": "None", "weights": None, **changes})

    def recipe(self, *control: ControlUnit, **changes: object) -> Recipe:
        values = {"prompt": "a red circle on blue", "negative_prompt": "", "seed": 5, "subseed": 0, "sampler": "Euler", "steps": 3,
                  "cfg_scale": 5.0, "width": 64, "height": 64, "checkpoint": self.use(CHECKPOINT)}  # fmt: skip
        return Recipe(control=control, **{**values, **changes})

    def render(self, *recipes: Recipe):
        spec = RenderSpec(tuple(recipes), self.weights, self.inputs)
        return list(self.renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False))


@pytest.fixture
def studio(renderer, tmp_path) -> Studio:
    return Studio(renderer, tmp_path)


def kinds(outcomes) -> list[str]:
    return [type(outcome).__name__ for outcome in outcomes]


def pixels(outcome) -> bytes:
    return outcome.picture.pixels


def levels_apart(one, other) -> int:
    values = [np.frombuffer(pixels(outcome), np.uint8).astype(int) for outcome in (one, other)]
    return int(np.abs(values[0] - values[1]).max())


# --- checkpoints of another family ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_a_network_of_another_build_fails_the_images_that_asked_for_it_and_says_why(studio, tmp_path, family):
    checkpoint = studio.use(write_checkpoint(tmp_path / "other.safetensors", TINY[family].shapes()))
    outcomes = studio.render(studio.recipe(studio.unit(), checkpoint=checkpoint))
    assert kinds(outcomes) == ["Failed"] and outcomes[0].code == "control_unusable" and not outcomes[0].retryable
    assert "'miniature-canny' is for checkpoints of another build" in outcomes[0].message


def test_an_image_without_control_is_drawn_beside_those_that_fail(studio, tmp_path):
    checkpoint = studio.use(write_checkpoint(tmp_path / "other.safetensors", TINY["sdxl"].shapes()))
    bad = studio.recipe(studio.unit(), checkpoint=checkpoint)
    bad, lost = (
        replace(bad, control=(studio.unit(effective_region_mask=studio.region(mode)),)) for mode in ("RGB", "L")
    )
    assert kinds(studio.render(bad, lost)) == ["Failed", "Rendered"]


def test_a_file_that_is_no_network_fails_the_images_that_asked_for_it(studio):
    outcomes = studio.render(studio.recipe(studio.unit(weights=studio.use(MINIATURE / "miniature-x2.safetensors"))))
    assert kinds(outcomes) == ["Failed"] and "nothing in it reads a map" in outcomes[0].message


def test_the_family_a_network_was_made_for_is_named(checkpoint_of):
    theirs = checkpoint_of("sdxl")
    config = {**theirs.unet.config, "in_channels": 4, "conditioning_channels": 3, "cross_attention_dim": 768}
    with pytest.raises(ControlNetworkError, match="is for Stable Diffusion 1, the checkpoint is SDXL: it reads text"):
        require_same_build(config, theirs)


@pytest.fixture
def checkpoint_of(tmp_path) -> Callable[[str], object]:
    def load(family: str):
        path = write_checkpoint(tmp_path / f"{family}.safetensors", TINY[family].shapes())
        return load_checkpoint(path, device=CPU, dtype=torch.float32)

    return load


# --- images that lost their control -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_an_image_that_lost_its_control_takes_none_of_its_neighbours(studio, lost):
    recipes = []
    for place, colour in enumerate(("white", "red", "blue")):
        region = studio.region("L" if place == lost else "RGB")
        unit = studio.unit(picture=studio.picture(colour), effective_region_mask=region)
        recipes.append(studio.recipe(unit, seed=place, exact=True))
    together = studio.render(*recipes)
    for place, (found, recipe) in enumerate(zip(together, recipes, strict=True)):
        alone = studio.render(replace(recipe, control=()) if place == lost else recipe)[0]
        assert pixels(found) == pixels(alone)
        assert bool(found.attachments) is bool(alone.attachments) is (place != lost)
        assert ("switches control off" in " ".join(found.warnings)) is (place == lost)


# --- references -------------------------------------------------------------------------------------------------------

MODULES = ["reference_only", "reference_adain", "reference_adain+attn"]


@pytest.mark.parametrize("module", MODULES)
def test_exact_mode_draws_a_references_noise_by_image_whoever_is_beside_it(studio, module):
    own = studio.recipe(studio.reference(module=module), exact=True)
    (alone,) = studio.render(own)
    long = replace(own, seed=8, prompt="a red circle on blue, " * 30)
    free = replace(own, seed=9, cfg_scale=1.0)
    assert pixels(studio.render(free, own)[1]) == pixels(alone)
    assert pixels(studio.render(long, own, free)[1]) == pixels(alone)
    crowd = [replace(own, seed=seed) for seed in range(20, 28)]
    assert pixels(studio.render(*crowd, own)[8]) == pixels(alone)


def test_exact_mode_holds_where_one_image_needs_no_negative_half(studio):
    free = studio.recipe(studio.reference(), cfg_scale=1.0, steps=6, exact=True)
    (alone,) = studio.render(free)
    assert pixels(studio.render(replace(free, cfg_scale=7.0, seed=3), free)[1]) == pixels(alone)


def test_a_reference_is_what_it_is_alone_beside_images_of_other_lengths(studio):
    own = studio.recipe(studio.reference(), prompt="a red circle on blue, " * 30)
    (alone,) = studio.render(own)
    short = replace(own, prompt="a circle", seed=8)
    assert levels_apart(studio.render(short, own)[1], alone) <= 1


@pytest.mark.parametrize("names", ["a network", "nothing"])
def test_a_reference_passes_over_the_network_it_names(studio, names):
    plain = studio.render(studio.recipe(studio.reference()))[0]
    unit = studio.reference(model="miniature-canny", weights=studio.use(CANNY) if names == "a network" else None)
    assert pixels(studio.render(studio.recipe(unit))[0]) == pixels(plain)


def test_a_unit_without_module_and_network_leaves_the_image_without_control(studio):
    (outcome,) = studio.render(studio.recipe(ControlUnit(picture=studio.picture("white"))))
    assert pixels(outcome) == pixels(studio.render(studio.recipe())[0])
    assert outcome.warnings == ("No ControlNet is named; the image is drawn without control.",)


@pytest.mark.parametrize("inputs", [8, 9], ids=["editing", "inpainting"])
@pytest.mark.parametrize("module", MODULES)
def test_a_reference_leads_checkpoints_that_see_a_picture(studio, tmp_path, inputs, module):
    shapes = replace(TINY["sd1"], unet=UNet(inputs=inputs)).shapes()
    checkpoint = studio.use(write_checkpoint(tmp_path / "sees.safetensors", shapes), input_channels=inputs)
    given = Img2Img(picture=studio.picture("red"), image_cfg_scale=1.5 if inputs == 8 else None)
    plain = studio.recipe(checkpoint=checkpoint, img2img=given, exact=True)
    led = replace(plain, control=(studio.reference(module=module),))
    (alone,), beside = studio.render(led), studio.render(replace(led, seed=6), led)[1]
    assert pixels(alone) == pixels(beside) != pixels(studio.render(plain)[0])


# --- a checkpoint that takes over -------------------------------------------------------------------------------------


def a_refiner(studio: Studio, path: Path) -> Weights:
    """The miniature with another denoiser of the same build."""
    tensors = load_file(CHECKPOINT)
    save_file({name: tensor * 0.9 if ".input_blocks." in name else tensor for name, tensor in tensors.items()}, path)
    return studio.use(path)


@pytest.mark.parametrize("module", ["canny", "reference_only"])
def test_a_refiner_of_the_same_family_goes_on_under_control(studio, tmp_path, module):
    refiner = Refiner(checkpoint=a_refiner(studio, tmp_path / "refiner.safetensors"), switch_at=0.3)
    unit = studio.unit() if module == "canny" else studio.reference()
    from_there_on = replace(unit, guidance_start=0.5)
    recipes = [studio.recipe(*control, steps=6, refiner=refiner) for control in ((), (unit,), (from_there_on,))]
    plain, whole, late = (studio.render(recipe)[0] for recipe in recipes)
    assert len({pixels(outcome) for outcome in (plain, whole, late)}) == 3 and whole.warnings == ()


def test_a_refiner_of_another_family_ends_control_and_keeps_the_map(studio, tmp_path):
    first = write_checkpoint(tmp_path / "first.safetensors", TINY["sdxl"].shapes())
    second = write_checkpoint(tmp_path / "second.safetensors", TINY["sdxl-refiner"].shapes())
    refiner = Refiner(checkpoint=studio.use(second), switch_at=0.3)
    late = studio.reference(guidance_start=0.9)
    recipe = studio.recipe(late, checkpoint=studio.use(first), refiner=refiner, steps=6)
    (led,), (plain,) = studio.render(recipe), studio.render(replace(recipe, control=()))
    assert pixels(led) == pixels(plain) and len(led.attachments) == 1
    assert any("sdxl-refiner is another family" in sentence for sentence in led.warnings)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def miniature():
    return load_checkpoint(CHECKPOINT, device=CPU, dtype=torch.float32)


def renamed(path: Path, prefix: str) -> Path:
    tensors = {prefix + name.removeprefix("control_model."): tensor for name, tensor in load_file(CANNY).items()}
    save_file({**tensors, "something.else": torch.zeros(1)}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "control_model.", "controlnet.", "model.control_model."])
def test_what_stands_in_front_of_every_name_is_passed_over(miniature, tmp_path, prefix):
    path = renamed(tmp_path / "file.safetensors", prefix)
    found = load_controlnet(path, like=miniature, device=CPU, dtype=torch.float32).model.state_dict()
    known = load_controlnet(CANNY, like=miniature, device=CPU, dtype=torch.float32).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in known.items())
    assert recognise({name: tuple(tensor.shape) for name, tensor in load_file(path).items()}).family == "controlnet"


@pytest.mark.parametrize("prefix", ["", "controlnet."])
def test_names_of_diffusers_are_read_behind_a_prefix_too(miniature, tmp_path, prefix):
    known = load_controlnet(CANNY, like=miniature, device=CPU, dtype=torch.float32)
    encoder = {f"controlnet_cond_embedding.{name}": value for name, value in known.hint_encoder.state_dict().items()}
    tensors = {**known.model.state_dict(), **encoder}
    save_file({prefix + name: value.contiguous() for name, value in tensors.items()}, tmp_path / "file.safetensors")
    found = load_controlnet(tmp_path / "file.safetensors", like=miniature, device=CPU, dtype=torch.float32)
    assert torch.equal(found.model.conv_in.weight, known.model.conv_in.weight)
    assert recognise({prefix + name: tuple(value.shape) for name, value in tensors.items()}).make.endswith("names")


OTHER_SORTS = {
    "Control-LoRA": {"lora_controlnet": (1,)},
    "ControlNet union": {"task_embedding": (6, 4)},
    "ControlNet as a difference": {"difference": (1,)},
    "ControlNet-LLLite": {"lllite_unet_input_blocks_4_1.conditioning1.0.weight": (1,)},
    "IP-Adapter": {"image_proj.norm.weight": (4,)},
    "T2I-Adapter": {"body.0.in_conv.weight": (4, 4, 1, 1)},
}


@pytest.mark.parametrize(("sort", "shapes"), OTHER_SORTS.items(), ids=OTHER_SORTS)
def test_a_network_of_another_sort_is_refused_by_its_name(miniature, tmp_path, sort, shapes):
    own = load_file(CANNY) if sort.startswith(("Control-", "ControlNet u", "ControlNet a")) else {}
    path = tmp_path / "file.safetensors"
    save_file({**own, **{name: torch.zeros(shape) for name, shape in shapes.items()}}, path)
    with pytest.raises(CheckpointError, match=sort):
        load_controlnet(path, like=miniature, device=CPU, dtype=torch.float32)
