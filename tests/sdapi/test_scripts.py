"""A1111's selectable scripts, planned and composed without rendering: against recorded answers, and by themselves."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import random
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from renderjobs.compat.sdapi.errors import HandlerError, answer_of
from renderjobs.compat.sdapi.profile import default_options
from renderjobs.compat.sdapi.scripts import SCRIPTS, arguments_of, plan_of
from renderjobs.compat.sdapi.scripts.axes import axes_of
from renderjobs.compat.sdapi.scripts.base import (
    Answer,
    Cell,
    Drawn,
    Enlargement,
    Plan,
    Shown,
    Surroundings,
    advance,
    inherited,
    request_of,
)
from renderjobs.compat.sdapi.scripts.info import OWN_SCRIPTS, known_scripts, script_info, scripts_listed
from renderjobs.compat.sdapi.scripts.sheets import Label, annotated, tiled
from renderjobs.compat.sdapi.scripts.xyz import plotted
from renderjobs.compat.sdapi.wire import IMG2IMG, OURS, TXT2IMG, parsed
from tests.engine.recordings import A1111, MORE, needs_recordings

FIELDS = {"txt2img": TXT2IMG, "img2img": IMG2IMG}
CHECKPOINTS = {"tiny-sd15": "tiny-sd15.safetensors", "tiny-sd15-b": "tiny-sd15-b.safetensors"}
FOLDERS = {"scripts": MORE / "scripts", "upscalers": MORE / "upscalers", "a1111": A1111}


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text.rpartition(",")[2])))


def around(**changes: Any) -> Surroundings:
    plain = Surroundings(
        options=default_options(),
        checkpoint=CHECKPOINTS.get,
        vaes=("tinyvae.safetensors",),
        upscalers=("None", "Lanczos", "Nearest", "tiny-x2", "tiny-x4"),
        picture=opened,
    )
    return dataclasses.replace(plain, **changes)


def values_of(body: Mapping[str, Any], tab: str) -> dict[str, Any]:
    return parsed(body, {**FIELDS[tab], **OURS})


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A request with A1111's answer."""

    folder: Path

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    @property
    def body(self) -> dict[str, Any]:
        return self.json("request.json")

    @property
    def tab(self) -> str:
        return "img2img" if "init_images" in self.body else "txt2img"

    @property
    def info(self) -> dict[str, Any]:
        return json.loads(self.json("response.json")["info"])

    @property
    def pictures(self) -> list[Image.Image]:
        return [Image.open(self.folder / name) for name in self.json("response.json")["images"]]

    def plan(self) -> Plan:
        return plan_of(self.tab, values_of(self.body, self.tab), around(), random=random.Random(0))


def recorded(name: str) -> Recorded:
    group, _, case = name.partition("/")
    return Recorded(FOLDERS[group] / "cases" / case)


@cache
def statuses() -> dict[str, int]:
    found = {}
    for group, folder in FOLDERS.items():
        index = folder / "index.json"
        cases = json.loads(index.read_text()) if index.is_file() else []
        found |= {f"{group}/{case['name']}": case["status"] for case in cases}
    return {name: status for name, status in found.items() if recorded(name).body.get("script_name")}


def names(script: str, status: int = 200) -> list[str]:
    return [
        name
        for name, answered in statuses().items()
        if answered == status and recorded(name).body["script_name"].lower().startswith(script)
    ]


def parameters(infotext: str) -> dict[str, str]:
    """Key → value of an infotext's last line; values that are quoted stay so."""
    line = infotext.rpartition("\nSteps: ")[2]
    return dict(re.findall(r'([^:,]+?): ("(?:\\.|[^"])*"|[^,]*)(?:, |$)', f"Steps: {line}"))


TEXTS = {
    "steps": "Steps", "sampler_name": "Sampler", "cfg_scale": "CFG scale", "seed": "Seed",
    "hr_upscaler": "Hires upscaler", "denoising_strength": "Denoising strength", "subseed_strength": "Variation seed strength",
}  # fmt: skip
"""Field of a request → parameter of its infotext, of those that say it in the same words."""


def drawn_as(cell: Cell, case: Recorded, infotext: str, picture: Image.Image) -> Drawn:
    """A cell's picture as it is in a recorded answer."""
    asked = {**values_of(case.body, case.tab), **cell.changes}
    count = case.info["batch_size"]
    return Drawn(
        pictures=[picture],
        infotexts=[infotext],
        prompts=[infotext.partition("\nNegative prompt: ")[0]] * count,
        negative_prompts=[re.search(r"\nNegative prompt: (.*)\nSteps: ", infotext)[1]] * count,
        seeds=[asked["seed"] + further for further in range(count)],
    )


def answered(case: Recorded, plan: Plan, texts: Sequence[str], pictures: Sequence[Image.Image]) -> Answer:
    cells = zip(plan.cells, texts, pictures, strict=True)
    return advance(plan, [[drawn_as(cell, case, text, picture) for cell, text, picture in cells]])


def shown(answer: Answer, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    return [pictures[item.cell] if isinstance(item, Shown) else item for item in answer.shown]


def assert_same(made: Sequence[Image.Image], wanted: Sequence[Image.Image]) -> None:
    assert [picture.size for picture in made] == [picture.size for picture in wanted]
    for own, other in zip(made, wanted, strict=True):
        assert np.array_equal(np.asarray(own.convert("RGB")), np.asarray(other.convert("RGB")))


COMPARED = (
    "prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "batch_size", "index_of_first_image",
    "infotexts",
)  # fmt: skip


def assert_info(answer: Answer, case: Recorded, *keys: str) -> None:
    info = case.info
    said = {key: answer.info[key] for key in keys if key in answer.info}
    assert said == {key: info[key] for key in said}


def drawing_order(case: Recorded) -> list[int]:
    """Where each cell of a plot stands in the answer, cells in the order of drawing."""
    arguments = arguments_of(SCRIPTS["x/y/z plot"], case.body["script_args"])
    plot = plotted(case.tab, values_of(case.body, case.tab), arguments, around(), random.Random(0))
    return [plot.index(place) for place in plot.places]


@needs_recordings
@pytest.mark.parametrize("name", names("x/y/z"))
def test_cells_of_a_plot_are_the_recorded_pictures(name):
    case = recorded(name)
    plan, texts = case.plan(), case.info["infotexts"][1:]
    assert len(plan.cells) == len(texts) == plan.images_total
    for cell, place in zip(plan.cells, drawing_order(case), strict=True):
        said, text = parameters(texts[place]), texts[place]
        for field, label in TEXTS.items():
            value = cell.changes.get(field)
            assert value is None or said[label] == str(value)
        assert cell.changes.get("styles") or text.startswith(cell.changes.get("prompt", case.body["prompt"]) + "\n")
        assert said.get("Hires steps", "0") == str(cell.changes.get("hr_second_pass_steps", 0))
        assert said.get("RNG", "GPU") == cell.options.get("randn_source", "GPU")
        assert said.get("Clip skip", "1") == str(cell.options.get("CLIP_stop_at_last_layers", 1))
        assert said.get("VAE", "None") == cell.options.get("sd_vae", "None")
        assert said["Model"] == cell.options.get("sd_model_checkpoint", CHECKPOINTS["tiny-sd15"]).partition(".")[0]


@needs_recordings
@pytest.mark.parametrize("name", names("x/y/z"))
def test_a_plot_of_the_recorded_pictures_is_the_recorded_answer(name):
    case = recorded(name)
    plan, texts, wanted = case.plan(), case.info["infotexts"][1:], case.pictures
    lone = wanted[1:] or [Image.new("RGB", (64, 64))] * len(texts)
    order = drawing_order(case)
    pictures = [lone[place] for place in order]
    answer = answered(case, plan, [texts[place] for place in order], pictures) if order else advance(plan, [])
    assert_info(answer, case, *COMPARED)
    made = shown(answer, pictures)
    if name.endswith(("legend_margin", "seed_steps", "no_subgrids")):
        # Text is drawn in another font, or the pictures were not recorded by themselves.
        assert [picture.size for picture in made] == [picture.size for picture in wanted]
    else:
        assert_same(made, wanted)


@needs_recordings
def test_cells_stand_between_the_recorded_margins_of_a_legend():
    case = recorded("scripts/xyz_legend_margin")
    wanted, *lone = case.pictures
    answer = answered(case, case.plan(), case.info["infotexts"][1:], lone)
    for index, picture in enumerate(lone):
        left, top = 48 + index % 3 * 70, 8 + index // 3 * 70
        box = (left, top, left + 64, top + 64)
        assert_same([answer.shown[0].crop(box), wanted.crop(box)], [picture, picture])


@needs_recordings
@pytest.mark.parametrize("name", names("prompt matrix"))
def test_a_prompt_matrix_is_the_recorded_answer(name):
    case = recorded(name)
    plan = case.plan()
    wanted, *lone = case.pictures
    answer = answered(case, plan, case.info["infotexts"][1:], lone)
    field = case.body["script_args"][2].replace("positive", "prompt").replace("negative", "negative_prompt")
    assert [cell.changes[field] for cell in plan.cells] == case.info[f"all_{field}s"]
    assert [cell.changes["seed"] for cell in plan.cells] == case.info["all_seeds"]
    assert_info(answer, case, *COMPARED)
    assert answer.shown[0].size == wanted.size
    assert_same(shown(answer, lone)[1:], lone)


@needs_recordings
@pytest.mark.parametrize("name", names("prompts from"))
def test_prompts_from_a_textbox_are_the_recorded_answer(name):
    case = recorded(name)
    plan, info = case.plan(), case.info
    per_cell = info["batch_size"]
    assert plan.images_total == len(info["infotexts"]) == len(plan.cells) * per_cell
    drawn = []
    for number, cell in enumerate(plan.cells):
        texts = info["infotexts"][number * per_cell :][:per_cell]
        said = parameters(texts[0])
        asked = {**values_of(case.body, case.tab), **cell.changes}
        assert texts[0].startswith(f"{asked['prompt']}\nNegative prompt: {asked['negative_prompt']}\n")
        assert [said[label] for label in ("Steps", "Sampler", "CFG scale", "Seed", "Size")] == [
            str(asked["steps"]), asked["sampler_name"], str(asked["cfg_scale"]), str(asked["seed"]),
            f"{asked['width']}x{asked['height']}",
        ]  # fmt: skip
        drawn.append(Drawn(pictures=case.pictures[:per_cell], infotexts=texts, prompts=[asked["prompt"]] * per_cell))
    answer = advance(plan, [drawn])
    assert answer.shown == tuple(Shown(number) for number in range(len(plan.cells)))
    assert_info(answer, case, *COMPARED, "sd_model_name", "restore_faces")


def steps_of(case: Recorded, pictures_of: Any) -> tuple[Answer, list[Cell | Enlargement]]:
    """Run a script to its end; ``pictures_of`` gives the pictures of each cell from its number over all steps."""
    plan, done, cells = case.plan(), [], []
    while not isinstance(step := advance(plan, done), Answer):
        seeds = [getattr(cell, "changes", {}).get("seed", case.body["seed"]) for cell in step]
        done.append(
            [
                Drawn(
                    pictures=pictures_of(len(cells) + number, cell), infotexts=[case.info["infotexts"][0]], seeds=[seed]
                )
                for number, (cell, seed) in enumerate(zip(step, seeds, strict=True))
            ]
        )
        cells += step
    return step, cells


@needs_recordings
@pytest.mark.parametrize("name", names("loopback"))
def test_a_loopback_is_the_recorded_answer(name):
    case, body = recorded(name), recorded(name).body
    grid, *lone = case.pictures
    batches, loops = body.get("n_iter", 1), body["script_args"][0]
    # Of several batches only the last loop was recorded.
    made = lone if batches == 1 else [lone[0]] * ((loops - 1) * batches) + lone
    answer, cells = steps_of(case, lambda number, cell: [made[number]])
    assert len(cells) == case.plan().images_total
    assert sorted(cell.changes["seed"] for cell in cells) == [body["seed"] + number for number in range(len(cells))]
    assert cells[-1].changes["seed"] == case.info["all_seeds"][0]
    assert [bool(cell.init_images) for cell in cells] == [False] * batches + [True] * (batches * (loops - 1))
    assert cells[-1].changes["denoising_strength"] == case.info["extra_generation_params"]["Denoising strength"]
    assert_same(shown(answer, made), [grid, *lone])
    assert_info(answer, case, *COMPARED, "denoising_strength")


@needs_recordings
@pytest.mark.parametrize("name", names("sd upscale"))
def test_tiles_of_an_upscale_have_the_recorded_seeds_and_size(name):
    case = recorded(name)

    def enlarge(given: Enlargement) -> Image.Image:
        return given.picture.resize(case.pictures[0].size)

    answer, cells = steps_of(
        case, lambda _, cell: [enlarge(cell)] if isinstance(cell, Enlargement) else list(cell.init_images)
    )
    tiles = [cell for cell in cells if isinstance(cell, Cell)]
    assert case.plan().images_total == sum(len(cell.init_images) for cell in tiles)
    assert [tiles[-1].changes["seed"] + further for further in range(case.info["batch_size"])] == case.info["all_seeds"]
    assert tiles[0].notes == {key: case.info["extra_generation_params"][key] for key in tiles[0].notes}
    assert {picture.size for cell in tiles for picture in cell.init_images} == {
        (case.info["width"], case.info["height"])
    }
    # Tiles that stay as they were join to the enlarged picture.
    start = opened(case.body["init_images"][0]).convert("RGB")
    whole = enlarge(cells[0]) if isinstance(cells[0], Enlargement) else start
    assert_same(answer.shown, [whole] * len(case.pictures))
    assert answer.described == len(cells) - 1
    assert_info(answer, case, *COMPARED)


@needs_recordings
def test_outpainting_to_the_right_keeps_the_recorded_pixels_it_does_not_draw():
    case = recorded("scripts/outpainting_mk2_right")
    answer, (cell,) = steps_of(case, lambda _, cell: [case.pictures[0].crop((64, 0, 192, 128))])
    assert (cell.changes["mask_blur_x"], cell.changes["mask_blur_y"]) == (32, 0)
    assert cell.init_images[0].size == cell.mask.size == cell.latent_mask.size == (128, 128)
    assert (cell.changes["width"], cell.changes["height"]) == (128, 128)
    assert_same(answer.shown, case.pictures)
    assert_info(answer, case, *COMPARED)


@needs_recordings
def test_outpainting_of_all_sides_grows_to_the_recorded_size():
    case = recorded("scripts/outpainting_mk2_all")
    answer, cells = steps_of(case, lambda _, cell: list(cell.init_images))
    assert [picture.size for picture in answer.shown] == [picture.size for picture in case.pictures]
    assert len(cells) == 4 and case.plan().images_total == 8
    last = cells[-1].changes
    assert (last["width"], last["height"], last["mask_blur_x"], last["mask_blur_y"]) == (192, 128, 16, 16)
    assert_info(answer, case, *COMPARED)


@needs_recordings
@pytest.mark.parametrize("name", names("poor man"))
def test_poor_mans_outpainting_draws_the_tiles_beyond_the_picture(name):
    case = recorded(name)
    wanted, border = case.pictures[0], (64, 64) if len(case.body["script_args"][3]) == 2 else (0, 0)
    places = [(0, 0), (64, 0), (0, 64)] if border[0] else [(64, 0)]
    answer, cells = steps_of(
        case, lambda number, _: [wanted.crop((*places[number], *(side + 128 for side in places[number])))]
    )
    assert [cell.changes["seed"] for cell in cells][-1:] == case.info["all_seeds"]
    assert {cell.mask.size for cell in cells} == {(128, 128)}
    assert answer.shown[0].size == wanted.size
    # Apart from the seams, where the recorded tile itself is not known.
    seamless = (0, 0, 64, 64) if border[0] else (96, 0, 192, 128)
    assert_same([answer.shown[0].crop(seamless)], [wanted.crop(seamless)])
    assert_info(answer, case, *COMPARED)


@needs_recordings
@pytest.mark.parametrize("name", [name for name, status in statuses().items() if status != 200])
def test_refusals_are_the_recorded_ones(name):
    case = recorded(name)
    with pytest.raises(HandlerError) as refused:
        case.plan()
    response = answer_of(refused.value)
    assert (response.status_code, json.loads(response.content)) == (statuses()[name], case.json("response.json"))


@needs_recordings
@pytest.mark.parametrize("name", names("img2img alternative"))
def test_the_alternative_test_changes_what_was_recorded(name):
    case = recorded(name)
    (cell,) = case.plan().cells
    assert cell.notes == {key: case.info["extra_generation_params"][key] for key in cell.notes}
    assert cell.changes.get("prompt", case.body["prompt"]) == case.info["prompt"]
    assert cell.changes["sampler_name"] == case.info["sampler_name"]
    assert cell.changes.get("denoising_strength", case.body["denoising_strength"]) == case.info["denoising_strength"]


@needs_recordings
def test_script_info_is_the_recorded_one():
    recorded_info = json.loads((A1111 / "api" / "get_script-info.json").read_text())["body"]
    by_label = {argument["label"]: argument["choices"] for script in recorded_info for argument in script["args"]}
    own = script_info(checkpoints=by_label["Checkpoint"], upscalers=by_label["Upscaler"])
    assert json.dumps([script for script in own if script["name"] not in OWN_SCRIPTS]) == json.dumps(recorded_info)


@needs_recordings
def test_scripts_are_listed_in_the_recorded_order():
    wanted = json.loads((A1111 / "api" / "get_scripts.json").read_text())["body"]
    for tab, names_listed in scripts_listed().items():
        assert [
            name for name in names_listed if not name.startswith("controlnet") and name not in OWN_SCRIPTS
        ] == wanted[tab]


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_every_script_that_runs_is_listed(tab):
    runs = {name for name, script in SCRIPTS.items() if tab in script.tabs}
    alwayson = {name for name, script in known_scripts().items() if script["is_alwayson"]}
    assert runs == {name for name in scripts_listed()[tab] if name in known_scripts()} - alwayson


def planned(script: str, arguments: list[Any], *, tab: str = "txt2img", seed: int = 0, **body: Any) -> Plan:
    asked = {"prompt": "a cat", "negative_prompt": "blurry", "seed": 5, "width": 64, "height": 64} | body
    values = values_of({**asked, "script_name": script, "script_args": arguments}, tab)
    return plan_of(tab, values, around(), random=random.Random(seed))


def axis(label: str, tab: str = "txt2img") -> int:
    return [each.label for each in axes_of(tab)].index(label)


def plot(*axes: tuple[str, str], tab: str = "txt2img", seed: int = 0, **changes: Any) -> Plan:
    """A plot whose values are given as text; the rest of its arguments by name."""
    chosen = [*axes, *[("Nothing", "")] * (3 - len(axes))]
    arguments = {**SCRIPTS["x/y/z plot"].defaults, "csv_mode": True}
    for letter, (label, text) in zip("xyz", chosen, strict=True):
        arguments |= {f"{letter}_type": axis(label, tab), f"{letter}_values": text}
    arguments |= {name: changes.pop(name) for name in [*changes] if name in arguments}
    return planned("X/Y/Z plot", list(arguments.values()), tab=tab, seed=seed, **changes)


def picture(colour: str = "red", size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def as_text(given: Image.Image) -> str:
    data = io.BytesIO()
    given.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


RANGES = [
    ("Steps", "1-5", [1, 2, 3, 4, 5]),
    ("Steps", "1-5 (+2), 9", [1, 3, 5, 9]),
    ("Steps", "9-5 (-2)", [9, 7]),
    ("Steps", "1-10 [4]", [1, 4, 7, 10]),
    ("Steps", " 20 ,, 30", [20, 30]),
    ("CFG Scale", "1-3", [1.0, 2.0, 3.0]),
    ("CFG Scale", "0-1 (+0.5)", [0.0, 0.5, 1.0]),
    ("CFG Scale", "0-1 [3]", [0.0, 0.5, 1.0]),
    ("CFG Scale", "7.5", [7.5]),
]


@pytest.mark.parametrize(("label", "text", "wanted"), RANGES, ids=[text for _, text, _ in RANGES])
def test_ranges_are_spread_out(label, text, wanted):
    field = {"Steps": "steps", "CFG Scale": "cfg_scale"}[label]
    assert [cell.changes[field] for cell in plot((label, text)).cells] == wanted


def test_the_slowest_axis_is_walked_outermost_and_pictures_keep_their_places():
    plan = plot(("Checkpoint name", "tiny-sd15,tiny-sd15-b"), ("Steps", "1,2"), draw_legend=False)
    order = [(cell.options["sd_model_checkpoint"], cell.changes["steps"]) for cell in plan.cells]
    first, second = CHECKPOINTS.values()
    assert order == [(first, 1), (first, 2), (second, 1), (second, 2)]
    colours = ["red", "lime", "blue", "white"]
    answer = advance(plan, [[Drawn(pictures=[picture(colour)], infotexts=["text"]) for colour in colours]])
    corners = [answer.shown[0].getpixel(place) for place in ((0, 0), (64, 0), (0, 64), (64, 64))]
    assert corners == [(255, 0, 0), (0, 0, 255), (0, 255, 0), (255, 255, 255)]


def test_a_part_of_the_grid_is_shown_per_z_value_when_it_is_asked_for():
    plan = plot(("Steps", "1,2"), ("CFG Scale", "3"), ("Seed", "7,8,9"), draw_legend=False, include_sub_grids=True)
    drawn = [
        Drawn(pictures=[picture()], infotexts=[f"{n}"], seeds=[cell.changes["seed"]])
        for n, cell in enumerate(plan.cells)
    ]
    answer = advance(plan, [drawn])
    assert [made.size for made in answer.shown] == [(384, 64), *[(128, 64)] * 3]
    assert answer.info["all_seeds"] == [7, 8, 9, 7, 7, 8, 8, 9, 9]
    assert [text.partition(",")[0] for text in answer.info["infotexts"]] == [*"0024", *"012345"]


def test_a_picture_that_is_missing_leaves_its_place_black():
    plan = plot(("Steps", "1,2"), draw_legend=False, include_lone_images=True)
    answer = advance(plan, [[Drawn(pictures=[picture()], infotexts=["text"], seeds=[5]), Drawn(pictures=[])]])
    assert answer.shown[0].getpixel((100, 10)) == (0, 0, 0) and answer.shown[1] == Shown(0, 0)
    assert answer.info["all_seeds"] == [5, None] and answer.info["infotexts"][1:] == ["text", None]


def test_seeds_vary_along_the_axes_that_are_named():
    plan = plot(("Steps", "1,2"), ("CFG Scale", "3,4"), ("Eta", "0,1"), vary_seeds_x=True, vary_seeds_z=True)
    assert [cell.changes["seed"] for cell in plan.cells] == [5, 6, 5, 6, 7, 8, 7, 8]


def test_random_seeds_are_the_same_for_all_cells_and_the_same_again_when_a_plan_is_made_again():
    plans = [plot(("Steps", "1,2"), ("Seed", "-1,3"), seed=seed) for seed in (1, 1, 2)]
    seeds = [[cell.changes["seed"] for cell in plan.cells] for plan in plans]
    assert seeds[0] == seeds[1] != seeds[2]
    assert seeds[0][0] == seeds[0][1] > 0 and seeds[0][2:] == [3, 3]


def test_seeds_stay_random_in_every_cell_when_they_are_not_to_be_fixed():
    plan = plot(("Steps", "1,2"), no_fixed_seeds=True)
    assert all("seed" not in cell.changes for cell in plan.cells)


def test_cells_draw_one_picture_unless_the_others_are_kept():
    assert plot(("Steps", "1,2"), batch_size=2, n_iter=3).images_total == 2
    assert plot(("Steps", "1,2"), batch_size=2, n_iter=3, save_images=True).images_total == 12


def test_options_of_an_axis_win_over_every_other_place():
    hosted = {"alwayson_scripts": {"sd_model_checkpoint": "other", "ControlNet": {}}, "sd_model_checkpoint": "third"}
    (cell,) = plot(("Checkpoint name", "tiny-sd15"), override_settings={"sd_vae": "None"}, **hosted).cells
    own = request_of(
        values_of({"script_name": "X/Y/Z plot", "override_settings": {"sd_vae": "None"}, **hosted}, "txt2img"), cell
    )
    assert own["override_settings"] == {"sd_vae": "None", "sd_model_checkpoint": "tiny-sd15.safetensors"}
    assert (own["sd_model_checkpoint"], own["script_name"], [*own["alwayson_scripts"]]) == (None, None, ["ControlNet"])


def test_a_schedule_in_the_samplers_name_stays_when_an_axis_changes_the_sampler():
    body = {"sampler_name": "DPM++ 2M Karras"}
    (cell,) = plot(("Sampler", "Euler"), **body).cells
    own = request_of(values_of(body, "txt2img"), cell)
    assert (own["sampler_name"], own["scheduler"]) == ("Euler", "Karras")


REFUSED = [
    ("Prompt S/R", "dog,cat", "RuntimeError", "Prompt S/R did not find dog in prompt or negative prompt."),
    ("Checkpoint name", "other", "RuntimeError", "Unknown checkpoint: other"),
    ("Refiner checkpoint", "None,other", "RuntimeError", "Unknown checkpoint: other"),
    ("Steps", "1.5", "ValueError", "invalid literal for int() with base 10: '1.5'"),
    ("Steps", "1-10000000", "HTTPException", "An axis of more than 10000 values is not accepted."),
    ("Prompt order", "a,b,c,d,e,f,g,h,i", "HTTPException", "An axis of more than 10000 values is not accepted."),
]


@pytest.mark.parametrize(("label", "text", "kind", "message"), REFUSED, ids=[f"{row[0]}: {row[1]}" for row in REFUSED])
def test_values_that_an_axis_does_not_take_are_refused(label, text, kind, message):
    with pytest.raises(HandlerError) as refused:
        plot((label, text))
    assert (refused.value.error, refused.value.detail) == (kind, message)


def test_a_grid_that_would_be_too_large_is_refused():
    with pytest.raises(HandlerError, match=r"Resulting grid would be too large \(419 MPixels\)"):
        plot(("Steps", "1-100"), width=2048, height=2048)


def test_an_axis_that_is_not_there_is_answered_as_python_names_it():
    with pytest.raises(HandlerError) as refused:
        planned("x/y/z plot", [99])
    assert (refused.value.status, refused.value.error, refused.value.detail) == (
        500,
        "IndexError",
        "list index out of range",
    )


def test_arguments_that_are_missing_have_the_pages_defaults():
    assert len(planned("prompt matrix", [], prompt="a|b|c").cells) == 4
    with pytest.raises(HandlerError, match="Unknown prompt type both"):
        planned("prompt matrix", [False, False, "both"])


def test_a_matrix_puts_its_parts_before_the_prompt_and_counts_seeds_when_asked():
    plan = planned("prompt matrix", [True, True, "positive", "space"], prompt="a cat| red, |snow")
    assert [cell.changes["prompt"] for cell in plan.cells] == ["a cat", "red a cat", "snow a cat", "red snow a cat"]
    assert [cell.changes["seed"] for cell in plan.cells] == [5, 6, 7, 8]


def test_lines_that_are_no_command_lines_are_prompts():
    text = "--prompt a big dog --steps 7\n\n--steps x\na -- b\n--seed\n--sd_model tiny-sd15-b --tiling true"
    cells = planned("prompts from file or textbox", [False, False, "start", text], prompt="", seed=-1).cells
    assert [cell.changes.get("prompt") for cell in cells] == ["a big dog", "--steps x", "a -- b", "--seed", None]
    assert cells[0].changes["steps"] == 7 and cells[4].changes["tiling"] is True
    assert cells[4].options == {"sd_model_checkpoint": "tiny-sd15-b.safetensors"}


def test_prompts_from_a_file_are_described_by_the_request_they_are_copies_of():
    arguments = [False, False, "start", '--prompt "old" --width 80 --height 72 --batch_size 2 --sampler_name DDIM']
    plan = planned("prompts from file or textbox", arguments, width=64, height=64, sampler_name="LMS", steps=5)
    info = advance(plan, [[Drawn(pictures=[picture()])]]).info
    assert (info["width"], info["height"], info["batch_size"]) == (64, 64, 1)
    assert (info["sampler_name"], info["steps"], info["cfg_scale"]) == ("LMS", 5, 7.0)


@pytest.mark.parametrize(("given", "fill"), [(1, 1), ("2", 2), ("original", 0), ("latent noise", 0)])
def test_labels_of_poor_mans_outpainting_mean_the_first_of_them(given, fill):
    body = {"tab": "img2img", "init_images": [as_text(picture(size=(64, 64)))], "width": 64, "height": 64}
    (cell, *_) = planned("poor man's outpainting", [32, 4, given, ["right"]], **body).cells
    assert cell.changes["inpainting_fill"] == fill


GRID_TEXTS = {
    "nothing is left of the axes' options": ("CPU,NV", {}, "Clip skip: 2, RNG: CPU", "Clip skip: 2"),
    "the request's own come back": ("CPU,NV", {"randn_source": "NV"}, "RNG: CPU", "RNG: NV"),
}


@pytest.mark.parametrize("name", GRID_TEXTS)
def test_a_grids_text_is_written_when_the_options_are_back(name):
    sources, overrides, parameters, expected = GRID_TEXTS[name]
    axis = [axis.label for axis in axes_of("txt2img")].index("RNG source")
    arguments = [axis, sources, "", 0, "", "", 0, "", "", False, True, False, False, False, False, False, 0, True]
    plan = planned("x/y/z plot", arguments, prompt="RNG: a, b", override_settings=overrides)
    texts = [f"RNG: a, b\nSteps: 20, {parameters}, Version: v1.10.1"] * 2
    done = [[Drawn(pictures=[picture()], infotexts=[text], seeds=[5]) for text in texts]]
    grid, first, _ = advance(plan, done).info["infotexts"]
    assert first == texts[0]
    assert grid == (
        f'RNG: a, b\nSteps: 20, {expected}, Script: X/Y/Z plot, X Type: RNG source, X Values: "CPU,NV", Version: v1.10.1'
    )


def test_later_cells_inherit_what_earlier_ones_reported():
    extras = [{"Schedule type": "Karras"}, {}, {"Schedule type": "Beta", "Eta": 0.5}, {}]
    assert inherited(extras) == [
        {}, {"Schedule type": "Karras"}, {"Schedule type": "Karras"}, {"Schedule type": "Beta", "Eta": 0.5},
    ]  # fmt: skip


def test_an_interrupted_loopback_shows_what_was_drawn():
    plan = planned("loopback", [4], tab="img2img", init_images=[as_text(picture())])
    done = [[Drawn(pictures=[picture()], infotexts=["first"], seeds=[5])], [Drawn(pictures=[])]]
    answer = advance(plan, done)
    assert answer.shown == (Shown(0, 0),) and answer.info["infotexts"] == ["first"]


def test_a_script_goes_on_from_stored_pictures_alone():
    arguments, body = ["", 32, 4, ["left", "down"]], {"init_images": [as_text(picture())], "width": 128, "height": 128}
    first = planned("outpainting mk2", arguments, tab="img2img", **body)
    done = [[Drawn(pictures=list(cell.init_images), infotexts=["text"], seeds=[5]) for cell in first.cells]]
    going_on, again = advance(first, done), advance(planned("outpainting mk2", arguments, tab="img2img", **body), done)
    assert len(going_on) == 1 and going_on[0].changes == again[0].changes
    assert_same(going_on[0].init_images, again[0].init_images)


def test_a_script_of_img2img_needs_a_picture():
    with pytest.raises(HandlerError) as refused:
        planned("sd upscale", [], tab="img2img")
    assert (refused.value.status, refused.value.detail) == (404, "Init image not found")


@pytest.mark.parametrize("size", [(200, 150), (64, 64), (50, 40), (129, 65)], ids=str)
@pytest.mark.parametrize("overlap", [0, 16, 33])
def test_tiles_join_to_the_picture_they_were_cut_from(size, overlap):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    tiling = tiled(noise, width=64, height=64, overlap=overlap)
    assert {tile.picture.size for tile in tiling.tiles()} == {(64, 64)}
    if min(size) >= 64:
        assert_same([tiling.joined()], [noise])


def test_a_legend_takes_room_only_where_there_are_texts():
    sheet, cell = picture(size=(200, 100)), (100, 100)
    plain, blank = [[Label("CFG Scale: 7.0")], [Label("CFG Scale: 9.0")]], [[Label()]]
    assert annotated(sheet, cell, [*blank, *blank], blank, default_options()).size == (200, 100)
    assert annotated(sheet, cell, [*blank, *blank], [[Label("a")]], default_options(), margin=10).size == (285, 100)
    above = annotated(sheet, cell, plain, blank, default_options())
    assert above.width == 200 and above.height > 100


TOO_LARGE = [
    ("sd upscale", ["", 63, "None", 2], "tiles of 64 x 64 pixels are too many"),
    ("outpainting mk2", ["", 100000], "too large to be outpainted"),
    ("poor man's outpainting", [100000], "too large to be outpainted"),
]


@pytest.mark.parametrize(("script", "arguments", "message"), TOO_LARGE, ids=[row[0] for row in TOO_LARGE])
def test_what_would_not_fit_into_memory_is_refused_before_it_is_made(script, arguments, message):
    with pytest.raises(HandlerError, match=message):
        planned(script, arguments, tab="img2img", init_images=[as_text(picture(size=(512, 512)))])
