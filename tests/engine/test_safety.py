"""What the checker sees, what it catches, and what becomes of a picture that is caught."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from assets.folders import Directory, folder_merge
from gpuworker.contract import Attachment, Picture
from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.images.safety import censored, censored_along
from gpuworker.engine.models.safety_checkers import SafetyChecker, load_safety_checker
from tests.engine.companions import a_safety_checker

CPU = torch.device("cpu")


def noise(width: int = 90, height: int = 61, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(params=[False, True], ids=["names of today", "names of published files"])
def folder(request, tmp_path) -> Path:
    return a_safety_checker(tmp_path / "watchful", caught=noise(), let_through=noise(seed=1), wrapped=request.param)


def loaded(folder: Path) -> SafetyChecker:
    target = folder.with_suffix(".safetensors")
    folder_merge(Directory(folder), target)
    return load_safety_checker(target, device=CPU)


def test_the_dictated_picture_is_caught_and_another_is_not(folder):
    checker = loaded(folder)
    assert checker.catches(noise()) and not checker.catches(noise(seed=1))
    assert checker.size_bytes > 0


def test_the_verdict_is_that_of_diffusers(tmp_path):
    folder = a_safety_checker(tmp_path / "watchful", caught=noise(), let_through=noise(seed=1))
    theirs = StableDiffusionSafetyChecker.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32, resample=Image.Resampling.BICUBIC)
    ours, seen = (
        loaded(folder),
        [noise(width, height, seed) for seed in range(6) for width, height in ((64, 96), (200, 33))],
    )
    _, expected = theirs(clip_input=processor(seen, return_tensors="pt").pixel_values, images=[np.zeros(1)] * len(seen))
    assert [ours.catches(picture) for picture in seen] == expected


def test_a_care_embedding_makes_the_checker_stricter(tmp_path):
    folder = a_safety_checker(tmp_path / "watchful", caught=noise(), let_through=noise(seed=1))
    tensors = load_file(folder / "model.safetensors")
    tensors["concept_embeds_weights"][0] = 1.005  # just beyond likeness
    save_file(tensors, folder / "model.safetensors")
    assert not loaded(folder).catches(noise())
    tensors["special_care_embeds"][0] = tensors["concept_embeds"][0]
    tensors["special_care_embeds_weights"][0] = 0.5
    save_file(tensors, folder / "model.safetensors")
    assert loaded(folder).catches(noise())


def test_other_numbers_of_concepts_are_read(tmp_path):
    folder = a_safety_checker(tmp_path / "watchful", caught=noise(), let_through=noise(seed=1))
    tensors = load_file(folder / "model.safetensors")
    for name in ("concept_embeds", "concept_embeds_weights"):
        tensors[name] = tensors[name][:2].clone()
    save_file(tensors, folder / "model.safetensors")
    assert loaded(folder).catches(noise())


def test_weights_of_another_size_are_refused(tmp_path):
    folder = a_safety_checker(tmp_path / "watchful", caught=noise(), let_through=noise(seed=1))
    tensors = load_file(folder / "model.safetensors")
    tensors["concept_embeds_weights"] = tensors["concept_embeds_weights"][:2].clone()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="concept_embeds_weights of the safety checker is"):
        loaded(folder)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("verdict", ["blurred", "blocked"])
def test_a_caught_picture_keeps_its_size_and_mode_and_nothing_that_can_be_made_out(mode, verdict):
    image = noise().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    made = censored(Picture(image.width, image.height, image.tobytes(), mode), verdict)
    shown = Image.frombytes(made.mode, (made.width, made.height), made.pixels)
    assert (shown.mode, shown.size) == (mode, image.size)
    grey = np.asarray(shown.convert("L"), dtype=float)
    assert grey.max() == 0 if verdict == "blocked" else np.abs(np.diff(grey, axis=1)).max() < 20
    if mode == "RGBA":
        assert shown.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_what_shows_the_same_as_a_caught_picture_goes_with_it():
    picture = Picture(2, 1, bytes([255] * 6))
    along = [Attachment(role, picture) for role in ("mask", "mask_composite", "control_map")]
    assert [max(one.picture.pixels) for one in censored_along(along, "blocked")] == [255, 0, 255]
