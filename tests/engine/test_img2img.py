"""Img2img around its sampling: pictures in, latents, pictures out; and as a caller of the renderer sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpuworker.contract import (
    Failed,
    Hires,
    Img2Img,
    Inpaint,
    InputPicture,
    Rendered,
    RenderSpec,
    Settings,
    SoftInpainting,
)
from gpuworker.engine.errors import InvalidPictureError, InvalidSpecError
from gpuworker.engine.execution_plan import plan_passes
from gpuworker.engine.images.colours import corrected, lab_of
from gpuworker.engine.images.init import BLANK_MASK, prepare
from gpuworker.engine.images.latents import PictureEncoder, concat_without_picture, given_latents
from gpuworker.engine.images.pictures import open_picture
from gpuworker.engine.images.resize import CROP, FILL, STRETCH, resized
from gpuworker.engine.images.soft_inpainting import SoftBlend
from gpuworker.engine.models.loader import load_checkpoint
from tests.engine.conftest import RANDOM
from tests.engine.recordings import case_of, needs_recordings

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@dataclass
class Store:
    """Pictures as callers sent them."""

    folder: Path
    inputs: dict[str, Path] = field(default_factory=dict)

    def put(self, picture: Image.Image | bytes, kind: str = "PNG", **options) -> InputPicture:
        path = self.folder / str(len(self.inputs))
        if isinstance(picture, bytes):
            path.write_bytes(picture)
        else:
            picture.save(path, kind, **options)
        sha256 = hashlib.sha256(path.read_bytes() + path.name.encode()).hexdigest()
        self.inputs[sha256] = path
        width, height = (1, 1) if isinstance(picture, bytes) else picture.size
        return InputPicture(sha256=sha256, width=width, height=height)

    def prepare(self, given: Img2Img, width: int = 64, height: int = 64, **settings):
        return prepare(given, path_of=self.path_of, width=width, height=height, settings=Settings(**settings))

    def path_of(self, picture: InputPicture) -> Path:
        return self.inputs[picture.sha256]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def noisy(store) -> Callable[..., InputPicture]:
    """A picture no two pixels of which are likely alike."""

    def make(width: int = 64, height: int = 64, seed: int = 0) -> InputPicture:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return store.put(Image.fromarray(pixels))

    return make


@pytest.fixture
def half_masked(store) -> Callable[..., Inpaint]:
    """Inpainting of the right half, or from another column on."""

    def make(width: int = 64, height: int = 64, start: int | None = None, **changes) -> Inpaint:
        mask = Image.new("L", (width, height))
        mask.paste(255, (width // 2 if start is None else start, 0, width, height))
        sharp = {"blur_x": 0, "blur_y": 0, "full_res": False, "fill": 1}
        return Inpaint(mask=store.put(mask), **{**sharp, **changes})

    return make


def plain(colour, width=64, height=64):
    return np.full((height, width, 3), colour, dtype=np.uint8)


def pixels_of(picture):
    return np.frombuffer(picture.pixels, np.uint8).reshape(picture.height, picture.width, len(picture.mode))


# --- pictures as they are stored -------------------------------------------------------------------------------------


def test_picture_is_turned_as_its_camera_says(store):
    picture = Image.new("RGB", (4, 2))
    exif = picture.getexif()
    exif[0x0112] = 6
    assert open_picture(store.path_of(store.put(picture, "JPEG", exif=exif))).size == (2, 4)


def test_palette_with_a_table_of_transparency_becomes_rgba(store):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    opened = open_picture(store.path_of(store.put(picture, transparency=bytes([0, 128]))))
    assert (opened.mode, opened.getchannel("A").tobytes()) == ("RGBA", bytes([0, 128]))


def test_transparent_part_shows_the_background(store):
    given = Img2Img(picture=store.put(Image.new("RGBA", (64, 64), (0, 0, 0, 0))))
    ready = store.prepare(given, img2img_background_color="#102030")
    assert ready.picture.getpixel((5, 5)) == (0x10, 0x20, 0x30)


def test_background_that_is_no_colour_is_refused_by_name(store):
    given = Img2Img(picture=store.put(Image.new("RGBA", (8, 8))))
    with pytest.raises(InvalidSpecError) as caught:
        store.prepare(given, img2img_background_color="#12")
    assert caught.value.field == "img2img_background_color"


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a"], ids=["empty", "text", "png", "gif"]
)
def test_bytes_that_are_no_picture_are_refused(store, content):
    with pytest.raises(InvalidPictureError):
        store.prepare(Img2Img(picture=store.put(content)))


def test_picture_that_was_cut_off_is_refused(store, noisy):
    whole = store.path_of(noisy()).read_bytes()
    with pytest.raises(InvalidPictureError):
        store.prepare(Img2Img(picture=store.put(whole[: len(whole) // 2])))


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_stretched_picture_fills_the_pass():
    assert resized(STRETCH, Image.new("RGB", (10, 40), RED), 64, 32).getcolors() == [(64 * 32, RED)]


def test_cropped_picture_loses_its_ends():
    picture = Image.new("RGB", (40, 20), BLUE)
    picture.paste(RED, (15, 0, 25, 20))
    made = np.asarray(resized(CROP, picture, 20, 20))
    assert made.shape == (20, 20, 3) and tuple(made[10, 10]) == RED and tuple(made[10, 0]) == BLUE


def test_fitted_picture_draws_its_edges_out():
    picture = Image.new("RGB", (20, 40), BLUE)
    picture.paste(RED, (0, 0, 10, 40))
    made = np.asarray(resized(FILL, picture, 40, 40))
    assert (made[:, :10] == RED).all() and (made[:, 30:] == BLUE).all()


@pytest.mark.parametrize("mode", [STRETCH, CROP, FILL])
@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_odd_pictures_get_the_size_of_the_pass(mode, size):
    assert resized(mode, Image.new("RGB", size, RED), 24, 16).size == (24, 16)


def test_enlarging_goes_through_the_given_scale(store, noisy):
    asked = []

    def scale(picture, width, height):
        asked.append((picture.size, (width, height)))
        return Image.new("RGB", (width, height), BLUE)

    given = Img2Img(picture=noisy(32, 32), resize_mode=CROP)
    ready = prepare(given, path_of=store.path_of, width=64, height=48, settings=Settings(), scale=scale)
    assert asked == [((32, 32), (64, 64))] and ready.picture.getpixel((0, 0)) == BLUE


def test_latent_resize_leaves_the_picture_as_it_is(store, noisy):
    assert store.prepare(Img2Img(picture=noisy(40, 24), resize_mode=3)).picture.size == (40, 24)


def test_latent_resize_of_a_picture_smaller_than_a_latent_is_refused(store, noisy):
    with pytest.raises(InvalidPictureError, match="7×64"):
        store.prepare(Img2Img(picture=noisy(7, 64), resize_mode=3))


# --- what comes back -------------------------------------------------------------------------------------------------


def test_without_a_mask_the_decoded_picture_comes_back(store, noisy):
    picture, attachments = store.prepare(Img2Img(picture=noisy())).finish(plain(RED))
    assert (pixels_of(picture) == RED).all() and attachments == []


def test_protected_half_comes_back_unchanged(store, noisy, half_masked):
    given = noisy()
    ready = store.prepare(Img2Img(picture=given, inpaint=half_masked()))
    original = np.asarray(Image.open(store.path_of(given)))
    finished = pixels_of(ready.finish(plain(RED))[0])
    assert (finished[:, :32] == original[:, :32]).all() and (finished[:, 32:] == RED).all()


def test_only_masked_part_is_pasted_into_the_whole_picture(store, noisy, half_masked):
    given = noisy(200, 100)
    ready = store.prepare(Img2Img(picture=given, inpaint=half_masked(200, 100, full_res=True)))
    original = np.asarray(Image.open(store.path_of(given)))
    finished = pixels_of(ready.finish(plain(RED))[0])
    assert finished.shape == (100, 200, 3)
    assert (finished[:, :100] == original[:, :100]).all() and (finished[:, 100:] == RED).all()


def test_masked_part_alone_is_encoded(store, half_masked):
    picture = Image.new("RGB", (200, 100), BLUE)
    picture.paste(RED, (100, 0, 200, 100))
    ready = store.prepare(Img2Img(picture=store.put(picture), inpaint=half_masked(200, 100, full_res=True)))
    assert ready.picture.getcolors() == [(64 * 64, RED)]
    assert ready.latent_mask.shape == (8, 8) and ready.latent_mask.min() == 1.0


def test_blank_mask_redraws_the_whole_picture_and_says_so(store, noisy):
    blank = Inpaint(mask=store.put(Image.new("L", (64, 64))))
    ready = store.prepare(Img2Img(picture=noisy(), inpaint=blank), return_mask=True)
    assert ready.latent_mask is None and ready.warnings == (BLANK_MASK,)
    picture, attachments = ready.finish(plain(RED))
    assert (pixels_of(picture) == RED).all() and attachments == []


def test_mask_of_another_size_is_brought_to_the_picture(store, noisy, half_masked):
    given = noisy()
    ready = store.prepare(Img2Img(picture=given, inpaint=half_masked(16, 16)))
    original = np.asarray(Image.open(store.path_of(given)))
    finished = pixels_of(ready.finish(plain(RED))[0])
    assert (finished[:, :20] == original[:, :20]).all() and (finished[:, 44:] == RED).all()


def test_overlay_can_be_switched_off(store, noisy, half_masked):
    ready = store.prepare(Img2Img(picture=noisy(), inpaint=half_masked()), overlay_inpaint=False)
    assert (pixels_of(ready.finish(plain(RED))[0]) == RED).all()


def test_soft_inpainting_lays_over_even_then(store, noisy, half_masked):
    inpaint = half_masked(soft=SoftInpainting())
    given = noisy()
    ready = store.prepare(Img2Img(picture=given, inpaint=inpaint), overlay_inpaint=False)
    unmoved = ready.finish(plain(RED), np.zeros((8, 8), dtype=np.float32))[0]
    assert (pixels_of(unmoved) == np.asarray(Image.open(store.path_of(given)))).all()
    moved = ready.finish(plain(RED), np.full((8, 8), 100.0, dtype=np.float32))[0]
    assert (pixels_of(moved) == RED).all()


def test_mask_and_composite_come_along_in_their_order(store, noisy, half_masked):
    ready = store.prepare(Img2Img(picture=noisy(), inpaint=half_masked()), return_mask=True, return_mask_composite=True)
    _, attachments = ready.finish(plain(RED))
    assert [(item.role, item.picture.mode) for item in attachments] == [("mask", "RGB"), ("mask_composite", "RGBA")]
    part = pixels_of(attachments[1].picture)
    assert part[0, 0].tolist() == [0, 0, 0, 0] and part[0, 63].tolist() == [255, 0, 0, 255]


def test_colours_are_taken_from_the_input(store):
    given = Img2Img(picture=store.put(Image.new("RGB", (64, 64), (90, 120, 200))))
    finished = pixels_of(store.prepare(given, img2img_color_correction=True).finish(plain((128, 128, 128)))[0])
    assert finished[..., 2].min() > finished[..., 0].max() + 50


def test_picture_of_the_same_colours_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(60, 200, (32, 32, 3), dtype=np.uint8)
    made = np.asarray(corrected(Image.fromarray(pixels), lab_of(Image.fromarray(pixels))))
    assert np.abs(made.astype(int) - pixels).max() <= 3


# --- latents ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_checkpoint(checkpoint):
    path = checkpoint[RANDOM.sha256].path
    return load_checkpoint(path, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def give(random_checkpoint) -> Callable:
    def run(*prepared, **options):
        with torch.inference_mode():
            return given_latents(prepared, random_checkpoint, PictureEncoder(), vae_key="random", **options)

    return run


def seeing(checkpoint, channels):
    """The checkpoint as if its network took more than latents."""

    class Seeing:
        class config:  # noqa: N801  as diffusers names it
            in_channels = channels

    return replace(checkpoint, unet=Seeing)


def test_picture_that_was_encoded_before_is_not_encoded_again(store, noisy, random_checkpoint):
    encoder, calls = PictureEncoder(), []
    vae = random_checkpoint.vae
    hook = vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    ready = store.prepare(Img2Img(picture=noisy()))
    try:
        with torch.inference_mode():
            first = given_latents([ready, ready], random_checkpoint, encoder, vae_key="one")
            again = given_latents([ready], random_checkpoint, encoder, vae_key="one")
            given_latents([ready], random_checkpoint, encoder, vae_key="another")
    finally:
        hook.remove()
    assert len(calls) == 2 and torch.equal(first.latents[1], again.latents[0])


def test_latents_are_resized_where_the_picture_was_not(store, noisy, give):
    assert give(store.prepare(Img2Img(picture=noisy(40, 24), resize_mode=3))).latents.shape == (1, 4, 8, 8)


def test_masked_latents_become_the_noise_or_nothing(store, noisy, half_masked, give):
    ready = store.prepare(Img2Img(picture=noisy(), inpaint=half_masked()))
    noise = torch.full((1, 4, 8, 8), 3.0)
    original, noised, emptied = (give(ready, fill=fill, noise=noise).latents for fill in (1, 2, 3))
    assert torch.equal(original[..., :4], noised[..., :4]) and bool((noised[..., 4:] == 3.0).all())
    assert torch.equal(original[..., :4], emptied[..., :4]) and not bool(emptied[..., 4:].any())


def test_image_without_a_mask_is_not_blended_beside_one_that_has_one(store, noisy, half_masked, give):
    soft = half_masked(soft=SoftInpainting())
    masked, unmasked = (store.prepare(Img2Img(picture=noisy(), inpaint=inpaint)) for inpaint in (soft, None))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for inpaint in (soft, replace(soft, soft=None)):
        blend = give(masked, unmasked).blend(inpaint, before=False)
        made = blend(latents, torch.tensor(1.0))
        assert torch.equal(made[1], latents[1]) and not torch.equal(made[0], latents[0])


def test_soft_blend_loosens_with_the_noise_and_leaves_finished_latents():
    picture, latents = torch.full((1, 4, 1, 1), 1.0), torch.full((1, 4, 1, 1), 3.0)
    blend = SoftBlend(SoftInpainting(), picture, torch.full((1, 1, 1, 1), 0.5), before=False)
    tight, loose = (float(blend(latents, torch.tensor(sigma)).mean()) for sigma in (10.0, 0.1))
    assert 1.0 < tight < loose < 3.0
    assert blend(latents, None) is latents


def test_inpainting_network_sees_the_mask_and_the_picture_without_it(store, noisy, half_masked, random_checkpoint):
    nine = seeing(random_checkpoint, 9)
    ready = store.prepare(Img2Img(picture=noisy(), inpaint=half_masked()))
    with torch.inference_mode():
        concat = given_latents([ready], nine, PictureEncoder(), vae_key="random").concat
    assert concat.shape == (1, 5, 8, 8)
    assert concat[0, 0].tolist() == [[0.0] * 4 + [1.0] * 4] * 8


def test_inpainting_network_without_a_picture_sees_a_grey_one(random_checkpoint):
    nine = seeing(random_checkpoint, 9)
    with torch.inference_mode():
        concat = concat_without_picture(nine, PictureEncoder(), vae_key="random", width=64, height=40, images=3)
    assert concat.shape == (3, 5, 5, 8) and bool((concat[:, 0] == 1.0).all())


@pytest.mark.parametrize(
    ("hires", "size"),
    [({"scale": 1.3}, (83, 83)), ({"resize_x": 100, "resize_y": 92}, (100, 88)), ({"resize_x": 100}, (100, 100))],
)
def test_a_picture_beside_hires_latents_has_the_size_asked_for_unless_it_is_cropped(recipe_of, hires, size):
    second = plan_passes(recipe_of(hires=Hires(upscaler="Lanczos", **hires))).second
    assert (second.picture_width, second.picture_height) == size


def test_editing_network_sees_unscaled_latents_and_needs_a_picture(store, noisy, random_checkpoint):
    eight = seeing(random_checkpoint, 8)
    with torch.inference_mode():
        given = given_latents([store.prepare(Img2Img(picture=noisy()))], eight, PictureEncoder(), vae_key="random")
    assert torch.equal(given.concat * random_checkpoint.latent_scale, given.latents)
    with pytest.raises(InvalidSpecError):
        concat_without_picture(eight, PictureEncoder(), vae_key="random", width=64, height=64, images=1)


# --- through the renderer --------------------------------------------------------------------------------------------


@pytest.fixture
def render_from(renderer, checkpoint, store, recipe_of) -> Callable:
    def run(*given: Img2Img, **changes):
        recipes = tuple(
            recipe_of(img2img=item, seed=index, denoising_strength=0.6, steps=4, **changes)
            for index, item in enumerate(given)
        )
        spec = RenderSpec(recipes, checkpoint, store.inputs)
        return list(renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False))

    return run


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DDIM", "UniPC"])
def test_protected_half_survives_rendering(store, noisy, half_masked, render_from, sampler):
    given = noisy()
    (outcome,) = render_from(Img2Img(picture=given, inpaint=half_masked()), sampler=sampler)
    original = np.asarray(Image.open(store.path_of(given)))
    finished = pixels_of(outcome.picture)
    assert (finished[:, :32] == original[:, :32]).all() and (finished[:, 32:] != original[:, 32:]).any()


@pytest.mark.parametrize("soft", [None, SoftInpainting()], ids=["hard", "soft"])
def test_images_of_a_pass_have_pictures_and_masks_of_their_own(noisy, half_masked, render_from, soft):
    given = [
        Img2Img(picture=noisy(seed=start), inpaint=half_masked(start=start, full_res=True, soft=soft))
        for start in (16, 40)
    ]
    together = render_from(*given)
    alone = [render_from(*given[:1])[0], render_from(given[1], given[1])[1]]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(pixels_of(one.picture).astype(int) - pixels_of(other.picture)).max() <= 2


def test_picture_that_cannot_be_read_fails_its_own_image_only(store, noisy, render_from):
    good = noisy(1, 1)
    outcomes = render_from(Img2Img(picture=store.put(b"no picture")), Img2Img(picture=good))
    assert isinstance(outcomes[0], Failed) and outcomes[0].code == "invalid_picture" and not outcomes[0].retryable
    assert isinstance(outcomes[1], Rendered)


@needs_recordings
def test_recorded_mask_and_composite_come_along(renderer):
    case = case_of("a1111", "inpaint_blur_xy_return_mask")
    (outcome,) = renderer.render(case.spec, on_step=lambda *_: None, should_stop=lambda: False)
    mask, composite = (pixels_of(item.picture).astype(int) for item in outcome.attachments)
    assert (mask == case.others[0]).all() and np.abs(composite - case.others[1]).max() <= 1
