"""Infotexts read again: A1111's vectors and recorded answers, its quirks, and that nothing of a recipe is lost on the way."""

from __future__ import annotations

import base64
import io
import json
import time

import pytest
from PIL import Image, PngImagePlugin

from gpuworker.contract import (
    Hires,
    Img2Img,
    Inpaint,
    InputPicture,
    NetworkUse,
    Picture,
    Recipe,
    Refiner,
    Settings,
    Weights,
)
from gpuworker.encoding import encoded
from renderjobs.choices import JobKind
from renderjobs.compat.sdapi.infotext import infotext_of
from renderjobs.compat.sdapi.infotext_fields import request_fields_of, with_infotext
from renderjobs.compat.sdapi.infotext_parser import Style, parse_infotext, png_info, uses_weights
from renderjobs.compat.sdapi.profile import default_options
from renderjobs.compat.sdapi.wire import TXT2IMG, parsed
from tests.engine.recordings import A1111, needs_recordings

LINE = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768"
DEFAULTS = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Refiner switch by sampling steps": False,
}
CHECKPOINT = Weights(name="real", sha256="4c5b88dd8e" + "0" * 54)
OTHER = Weights(name="other", sha256="0123456789" + "0" * 54)


def parsed_line(line: str) -> dict:
    return parse_infotext(f"a cat\n{LINE}, {line}")


def fields_of(text: str, kind: str = JobKind.TXT2IMG, **options) -> dict:
    return request_fields_of(parse_infotext(text), kind=kind, options={**default_options(), **options})


# --- parsing ---------------------------------------------------------------------------------------------------------


def test_keys_come_in_a1111s_order_with_prompts_and_defaults_behind():
    found = parse_infotext(f"a cat\nNegative prompt: dog\n{LINE}, Model hash: abc, Model: foo")
    written = {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7", "Seed": "5", "Size-1": "512", "Size-2": "768"}
    expected = {**written, "Model hash": "abc", "Model": "foo", "Prompt": "a cat", "Negative prompt": "dog", **DEFAULTS}
    assert found == expected
    assert list(found) == list(expected)


def test_a_picture_without_text_has_the_defaults():
    assert parse_infotext("") == {"Prompt": "", "Negative prompt": "", **DEFAULTS}


def test_two_pairs_are_a_prompt():
    assert parse_infotext("Steps: 1, Sampler: x")["Prompt"] == "Steps: 1, Sampler: x"


def test_prompts_keep_their_lines():
    found = parse_infotext(f"\n a \n\n b\nNegative prompt:\n c \nNegative prompt: d\n{LINE}")
    assert (found["Prompt"], found["Negative prompt"]) == ("a\n\nb", "c\nd")


VALUES = {
    "quoted": ('Lora hashes: "a: 1, b: 2"', "Lora hashes", "a: 1, b: 2"),
    "quotes within": (r'Hires prompt: "a \"b\", c\nd"', "Hires prompt", 'a "b", c\nd'),
    "a lone quote": ('Model: a"b', "Model", 'a"b'),
    "no JSON": (r'Model: "a\x"', "Model", r'"a\x"'),
    "something after the quotes": ('Model: "a" b', "Model", '"a" b'),
    "size of a quoted key": ('Hires resize: "64x96"', "Hires resize-2", "96"),
    "empty quotes": ('Model: ""', "Model", ""),
    "signs in the key": ("a-b/c d: 1", "a-b/c d", "1"),
    "sign before the key": ("- ab: 1", "ab", "1"),
    "colon in the value": ("Model: a:b", "Model", "a:b"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_read_as_a1111_reads_them(name):
    line, key, value = VALUES[name]
    assert parsed_line(line)[key] == value


@pytest.mark.parametrize(("line", "key"), [("X: 1", "X"), ("Model: , VAE: b", "Model"), ("key without colon", "key")])
def test_one_letter_and_empty_values_are_lost(line, key):
    assert key not in parsed_line(line)


def test_old_hypernetworks_become_tags():
    assert parsed_line("Hypernet: anime, Hypernet strength: 0.5")["Prompt"] == "a cat<hypernet:anime:0.5>"


def test_an_old_first_pass_becomes_a_hires_size():
    found = parsed_line("First pass size: 256x384")
    assert [found[key] for key in ("Size-1", "Size-2", "Hires resize-1", "Hires resize-2")] == [256, 384, 512, 768]
    found = parsed_line("First pass size: 0x0")
    assert [found["Size-1"], found["Size-2"]] == [448, 640]


def test_a_first_pass_that_is_no_size_is_passed_over():
    assert parsed_line("First pass size-1: x, First pass size-2: 3")["Size-1"] == "512"


VERSIONS = {
    "v1.5.2": {"Old prompt editing timelines", "Pad conds v0", "Downcast alphas_cumprod", "Refiner switch by sampling steps"},
    "v1.6.0-RC-3-gabc": {
        "Old prompt editing timelines", "Pad conds v0", "Downcast alphas_cumprod", "Refiner switch by sampling steps",
    },
    "v1.6.0": {"Downcast alphas_cumprod", "Refiner switch by sampling steps"},
    "v1.7.0-224-gabc": {"Downcast alphas_cumprod", "Refiner switch by sampling steps"},
    "v1.7.0-225-gabc": {"Refiner switch by sampling steps"},
    "v1.8.0": set(),
    "v1.10.1": set(),
    "f0.0.17v1.8.0rc-latest-1": set(),
    "v1.5.0-fork-1": set(),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_old_releases_switch_their_ways_on(version):
    found = parse_infotext(f"a [b:c:3]\nSteps: 2, Sampler: DDIM, Refiner: x, Version: {version}")
    ways = (
        "Old prompt editing timelines",
        "Pad conds v0",
        "Downcast alphas_cumprod",
        "Refiner switch by sampling steps",
    )
    assert {way for way in ways if found.get(way)} == VERSIONS[version]


EMPHASIS = {
    "a (b) c": True, "[b]": True, "(b:1.5": True, "(b: 1.5 )": True, "(a:1.0)": False, "a cat": False, "a BREAK b": False,
    r"a \(x\)": False, "()": False, ")]": False, "b:1.5)": False, "((a:0.5):2)": False, "((a:0.5) b:2)": True, "(a [b) c]": True,
    "(a": True, "(a:1.2.3)": True, "": False, "a [b:c:3]": True,
}  # fmt: skip


@pytest.mark.parametrize("prompt", EMPHASIS)
def test_emphasis_is_taken_for_granted_where_something_weighs(prompt):
    assert uses_weights(prompt) is EMPHASIS[prompt]
    assert ("Emphasis" in parse_infotext(f"{prompt}\n{LINE}")) is EMPHASIS[prompt]


STYLES = [
    Style("film", "film of {prompt}, grain", ""),
    Style("good", "masterpiece", "bad, ugly"),
    Style("none", "", ""),
]


def test_styles_are_cut_out_in_the_order_they_were_applied_in():
    found = parse_infotext(f"film of a  cat, masterpiece, grain\nNegative prompt: dog, bad, ugly\n{LINE}", STYLES)
    assert (found["Prompt"], found["Negative prompt"], found["Styles array"]) == ("a cat", "dog", ["good", "film"])


def test_hires_prompts_of_other_styles_keep_all_styles():
    text = f'a cat, masterpiece\nNegative prompt: bad, ugly\n{LINE}, Hires prompt: "a dog, sharp"'
    assert parse_infotext(text, STYLES)["Prompt"] == "a cat, masterpiece"
    found = parse_infotext(text.replace("sharp", "masterpiece"), STYLES)
    assert (found["Prompt"], found["Hires prompt"], found["Hires negative prompt"]) == ("a cat", "a dog", "")


@pytest.mark.parametrize(
    "text", ["ab " * 50_000, " " * 100_000 + "x", "a:" * 50_000, 'aa: "' * 30_000, "(" * 50_000 + "a" * 9]
)
def test_hostile_texts_are_read_in_linear_time(text):
    begin = time.process_time()
    parse_infotext(f"{text}\n{text}")
    assert time.process_time() - begin < 5


# --- pictures --------------------------------------------------------------------------------------------------------


def png_of(**texts: str) -> bytes:
    chunks, data = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, text in texts.items():
        chunks.add_text(key, text)
    Image.new("RGB", (16, 8)).save(data, "PNG", pnginfo=chunks, dpi=(72, 72))
    return data.getvalue()


def test_other_texts_of_a_png_are_items():
    found = png_info(png_of(parameters="a cat", extras="Postprocess upscale by: 2"))
    assert (found["info"], found["items"]) == ("a cat", {"extras": "Postprocess upscale by: 2"})
    assert found["parameters"] == parse_infotext("a cat")


@pytest.mark.parametrize("kind", ["jpg", "webp"])
def test_what_we_write_into_exif_is_read_again(kind):
    text = f"Ein Kätzchen 猫\n{LINE}"
    found = png_info(encoded(Picture(8, 8, bytes(192)), kind, {"parameters": text}).data)
    assert found["info"] == text
    assert found["items"]["exif comment"] == text


@pytest.mark.parametrize("comment", [b"ASCII\0\0\0a cat", b"a cat", b"UNICODE\0\0a\0 \0c\0a\0t", b"JIS\0\0\0\0\0a cat"])
def test_user_comments_have_several_codings(comment):
    exif, data = Image.Exif(), io.BytesIO()
    exif.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 8)).save(data, "JPEG", exif=exif)
    assert png_info(data.getvalue())["info"] == "a cat"


def test_the_comment_of_a_gif_is_its_infotext():
    data = io.BytesIO()
    Image.new("P", (8, 8)).save(data, "GIF", comment=b"a cat")
    assert png_info(data.getvalue())["info"] == "a cat"


def test_novelai_pictures_are_translated():
    comment = json.dumps({"sampler": "k_euler_ancestral", "uc": "bad", "steps": 28, "scale": 11.0, "seed": 3})
    found = png_info(png_of(Software="NovelAI", Description="a cat", Comment=comment))
    assert found["info"] == (
        "a cat\nNegative prompt: bad\nSteps: 28, Sampler: Euler a, CFG scale: 11.0, Seed: 3, Size: 16x8, Clip skip: 2, ENSD: 31337"
    )
    assert png_info(png_of(Software="NovelAI", Comment="{"))["info"] == ""


def test_the_answer_is_json_whatever_the_file_says():
    data = io.BytesIO()
    Image.new("P", (8, 8)).save(data, "GIF", comment=b"\xff\xfe", loop=0, transparency=0)
    json.dumps(png_info(data.getvalue()), allow_nan=False)


@needs_recordings
@pytest.mark.parametrize("name", ["post_png_info", "post_png_info_none"])
def test_recorded_answers_are_given_again(name):
    recorded = json.loads((A1111 / "api" / f"{name}.json").read_text())
    found = png_info(base64.b64decode(recorded["request"]["body"]["image"]))
    assert found == recorded["body"]
    assert list(found["parameters"]) == list(recorded["body"]["parameters"])


# --- requests --------------------------------------------------------------------------------------------------------


@needs_recordings
def test_the_recorded_request_is_filled_as_a1111_filled_it():
    recorded = json.loads((A1111 / "api" / "post_infotext_field.json").read_text())
    body = with_infotext(recorded["request"]["body"], kind=JobKind.TXT2IMG, options=default_options())
    assert parsed(body, TXT2IMG) == recorded["body"]["parameters"]


def test_what_the_caller_said_stays():
    body = {
        "infotext": f"a cat\n{LINE}, Clip skip: 2, ENSD: 31337",
        "steps": 3,
        "override_settings": {"eta_noise_seed_delta": 0},
    }
    filled = with_infotext(body, kind=JobKind.TXT2IMG, options=default_options())
    assert (filled["steps"], filled["prompt"], filled["width"]) == (3, "a cat", "512")
    assert filled["override_settings"] == {"CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 0}


@pytest.mark.parametrize("body", [{}, {"infotext": None}, {"infotext": 3}, {"infotext": ""}])
def test_without_a_text_nothing_is_filled(body):
    assert with_infotext(body, kind=JobKind.TXT2IMG, options=default_options()) == body


def test_overrides_that_are_no_map_are_left_to_be_refused():
    body = {"infotext": LINE, "override_settings": "x"}
    assert with_infotext(body, kind=JobKind.TXT2IMG, options=default_options())["override_settings"] == "x"


def test_a_named_sampler_index_wins_over_the_text():
    filled = with_infotext(
        {"infotext": f"a\n{LINE}", "sampler_index": "DDIM"}, kind=JobKind.TXT2IMG, options=default_options()
    )
    assert "sampler_name" not in filled


def test_a_strength_alone_starts_no_second_pass():
    assert "enable_hr" not in fields_of(f"a\n{LINE}, Denoising strength: 0.5")
    assert fields_of(f"a\n{LINE}, Denoising strength: 0.5, Hires upscale: 2")["enable_hr"] is True


def test_schedules_in_sampler_names_are_understood():
    assert fields_of("a\nSteps: 2, Sampler: DPM++ 2M Karras, Seed: 1")["scheduler"] == "Automatic"
    found = fields_of("a\nSteps: 2, Sampler: Euler Karras, Seed: 1, Hires sampler: DDIM Exponential")
    assert [found[name] for name in ("sampler_name", "scheduler", "hr_sampler_name", "hr_scheduler")] == [
        "Euler", "Karras", "DDIM", "Exponential",
    ]  # fmt: skip


def test_the_checkpoint_follows_only_where_that_is_switched_on():
    text = f"a\n{LINE}, Model hash: 0123456789"
    assert fields_of(text)["override_settings"] == {}
    found = fields_of(text, disable_weights_auto_swap=False)
    assert found["override_settings"] == {"sd_model_checkpoint": "0123456789"}


def test_values_that_are_no_numbers_are_left_to_be_refused():
    assert fields_of(f"a\n{LINE}, Clip skip: x")["override_settings"] == {"CLIP_stop_at_last_layers": "x"}


# --- there and back --------------------------------------------------------------------------------------------------


def a_recipe(**changes: object) -> Recipe:
    plain = {"prompt": "a cat", "negative_prompt": "bad", "seed": 7, "subseed": 42, "sampler": "Euler a", "steps": 12}
    return Recipe(**{**plain, "width": 128, "height": 192, "cfg_scale": 7.5, "checkpoint": CHECKPOINT, **changes})


def given_again(recipe: Recipe, kind: str = JobKind.TXT2IMG) -> dict:
    return fields_of(infotext_of(recipe), kind)


def test_a_plain_recipe_comes_back():
    found = given_again(
        a_recipe(prompt='a "cat",\nb: c', subseed_strength=0.5, seed_resize_from_w=64, seed_resize_from_h=96)
    )
    expected = {
        "prompt": 'a "cat",\nb: c', "negative_prompt": "bad", "steps": "12", "sampler_name": "Euler a", "scheduler": "Automatic",
        "cfg_scale": "7.5", "seed": "7", "width": "128", "height": "192", "subseed": "42", "subseed_strength": "0.5",
        "seed_resize_from_w": "64", "seed_resize_from_h": "96",
    }  # fmt: skip
    assert found.items() >= expected.items()
    assert found["override_settings"] == {}


SETTINGS = Settings(
    randn_source="NV", sigma_min=0.1, sigma_max=10.0, rho=5.0, always_discard_next_to_last_sigma=True, sgm_noise_multiplier=True,
    sd_noise_schedule="Zero Terminal SNR", use_downcasted_alpha_bar=True, s_min_uncond=2.0, s_min_uncond_all=True,
    skip_early_cond=0.2, pad_cond_uncond=True, token_merging_ratio=0.5,
)  # fmt: skip


def test_options_come_back():
    recipe = a_recipe(
        clip_skip=2,
        ensd=31337,
        eta=0.5,
        emphasis="No norm",
        prompt="a (cat)",
        tiling=True,
        vae=OTHER,
        schedule="Karras",
        settings=SETTINGS,
    )
    found = given_again(recipe)
    assert found["scheduler"] == "Karras"
    assert found["override_settings"] == {
        "CLIP_stop_at_last_layers": 2, "eta_noise_seed_delta": 31337, "eta_ancestral": 0.5, "emphasis": "No norm", "tiling": True,
        "sd_vae": "other.safetensors", **SETTINGS.to_json(),
    }  # fmt: skip


def test_beta_schedules_come_back():
    settings = Settings(beta_dist_alpha=0.4, beta_dist_beta=0.9)
    recipe = a_recipe(schedule="Beta", settings=settings)
    assert given_again(recipe)["override_settings"] == settings.to_json()


def test_a_second_pass_and_a_refiner_come_back():
    hires = Hires(
        scale=1.5,
        upscaler="Latent",
        steps=6,
        sampler="DDIM",
        schedule=None,
        prompt="a dog: b, c",
        negative_prompt="worse",
        checkpoint=OTHER,
    )
    refiner = Refiner(checkpoint=OTHER, switch_at=0.6)
    settings = Settings(
        refiner_switch_by_sample_steps=True, hires_fix_refiner_pass="first pass", token_merging_ratio_hr=0.3
    )
    found = given_again(a_recipe(hires=hires, refiner=refiner, denoising_strength=0.4, settings=settings))
    expected = {
        "enable_hr": True, "hr_scale": "1.5", "hr_upscaler": "Latent", "hr_second_pass_steps": "6", "hr_sampler_name": "DDIM",
        "hr_prompt": "a dog: b, c", "hr_negative_prompt": "worse", "hr_checkpoint_name": "other [0123456789]",
        "denoising_strength": "0.4", "refiner_checkpoint": "other [0123456789]", "refiner_switch_at": "0.6",
    }  # fmt: skip
    assert found.items() >= expected.items()
    assert found["override_settings"] == settings.to_json()


def test_a_second_pass_of_a_size_comes_back():
    found = given_again(a_recipe(hires=Hires(resize_x=256, resize_y=320)))
    assert (found["enable_hr"], found["hr_resize_x"], found["hr_resize_y"]) == (True, "256", "320")


def test_an_inpainting_comes_back():
    picture = InputPicture(sha256="0" * 64, width=64, height=64)
    inpaint = Inpaint(mask=picture, blur_x=6, blur_y=6, fill=3, full_res=True, padding=16, invert=True)
    given = Img2Img(picture=picture, inpaint=inpaint, noise_multiplier=1.25)
    settings = Settings(img2img_extra_noise=0.1)
    recipe = a_recipe(img2img=given, denoising_strength=0.6, settings=settings)
    found = given_again(recipe, JobKind.IMG2IMG)
    expected = {
        "prompt": "a cat", "denoising_strength": "0.6", "mask_blur": "6", "inpainting_fill": 3, "inpaint_full_res": True,
        "inpaint_full_res_padding": "16", "inpainting_mask_invert": 1, "initial_noise_multiplier": "1.25",
    }  # fmt: skip
    assert found.items() >= expected.items()
    assert found["override_settings"] == settings.to_json()
    assert "enable_hr" not in found


def test_a_picture_without_a_mask_says_nothing_of_masks():
    given = Img2Img(picture=InputPicture(sha256="0" * 64, width=64, height=64), image_cfg_scale=1.2)
    checkpoint = Weights(name="edit", sha256="0" * 64, input_channels=8)
    found = given_again(a_recipe(img2img=given, checkpoint=checkpoint), JobKind.IMG2IMG)
    assert found["image_cfg_scale"] == "1.2"
    assert not [name for name in found if "mask" in name or "inpaint" in name]


def test_hashes_of_networks_come_back_whole():
    uses = [
        NetworkUse(kind="lora", weights=Weights(name=name, sha256="0" * 64), listed_hash="0" * 12)
        for name in ("a", "b")
    ]
    found = parse_infotext(infotext_of(a_recipe(networks=tuple(uses))))
    assert found["Lora hashes"] == "a: 000000000000, b: 000000000000"
