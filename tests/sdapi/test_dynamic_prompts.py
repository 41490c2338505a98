"""Dynamic prompts at the door: every image has its own texts, pinned with the job; wrong calls store nothing."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.test import Client
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from assets.models import AssetKind, Wildcard
from common.errors import InvalidRequestError
from renderjobs.compat.sdapi import views, wire
from renderjobs.compat.sdapi.dynamic_prompts import ARGUMENTS, prompts_resolve
from renderjobs.compat.sdapi.errors import HandlerError, WireError
from renderjobs.compat.sdapi.profile import default_options
from renderjobs.compat.sdapi.scripts.info import known_scripts, scripts_listed
from renderjobs.compat.sdapi.translate import to_request
from renderjobs.compat.sdapi.wire import OURS, TXT2IMG
from renderjobs.delivery import image_deliver
from renderjobs.expansion import seeds_of
from renderjobs.models import RenderImage, RenderJob, ScriptCall
from renderjobs.request import RenderRequest
from tests.factories import a_caller, a_checkpoint, a_platform
from tests.renderjobs.test_delivery import begun
from tests.sdapi.test_txt2img import a_stored_picture, post

NAME = "Dynamic Prompts v2.17.1"
SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 7}


def script(name: str = NAME, **given: Any) -> dict[str, Any]:
    """``alwayson_scripts`` with these arguments at their places."""
    return {name: {"args": [given.get(argument, default) for argument, (_, default) in ARGUMENTS.items()]}}


def request(
    prompt: str = "a {red|green|blue} cat", *, most: int = 100, given: Any = None, **body: Any
) -> RenderRequest:
    sent = {**SMALL, "prompt": prompt, "alwayson_scripts": script() if given is None else given, **body}
    values = wire.parsed(sent, {**TXT2IMG, **OURS})
    made = to_request(values, options=default_options())
    prompts_resolve(made, values, wildcards=lambda name: ["oak", "elm"] if name == "tree" else [], most=most)
    return made.build()


def texts(asked: RenderRequest) -> list[str]:
    return [own.prompt for own in asked.texts]


# --- what follows from the arguments ----------------------------------------------------------------------------------


def test_every_image_has_the_prompt_of_its_own_seed():
    together = request(n_iter=8)
    alone = [request(seed=7 + index) for index in range(8)]
    assert texts(together) == [text for one in alone for text in texts(one)] and len(set(texts(together))) > 1
    assert together.prompt == "a {red|green|blue} cat"


def test_a_random_seed_is_drawn_before_the_prompts_and_kept():
    asked = request(seed=-1, n_iter=3)
    assert asked.seed >= 0 and texts(request(seed=asked.seed, n_iter=3)) == texts(asked)


@pytest.mark.parametrize("name", ["dynamic prompts", "Dynamic Prompts v2.0", "DYNAMIC PROMPTS v2.17.1"])
def test_the_script_is_called_by_the_extensions_name_whatever_its_version(name):
    assert len(request(given=script(name)).texts) == 1


@pytest.mark.parametrize("given", [{}, script(is_enabled=False)], ids=["not named", "switched off"])
def test_without_it_braces_are_letters(given):
    assert request(given=given).texts == ()


def test_arguments_left_out_have_their_defaults():
    assert len(request(given={NAME: {"args": []}}, n_iter=2).texts) == 2
    assert len(request(given={NAME: {"args": [None, True]}}).texts) == 3


def test_negative_and_hires_prompts_are_expanded_by_the_same_seed():
    asked = request(negative_prompt="{red|green|blue}", enable_hr=True, hr_prompt="x {red|green|blue}", n_iter=9)
    for own in asked.texts:
        assert own.prompt.split()[1] == own.negative_prompt == own.hires_prompt.split()[1]


def test_under_variation_all_images_have_one_prompt():
    assert len(set(texts(request(n_iter=9, subseed_strength=0.5)))) == 1


def test_all_combinations_set_the_number_of_pictures():
    asked = request("{a|b} __tree__", given=script(is_combinatorial=True), negative_prompt="{x|y}", batch_size=3)
    pairs = [(own.prompt, own.negative_prompt) for own in asked.texts]
    assert pairs == [(prompt, negative) for prompt in ("a oak", "a elm", "b oak", "b elm") for negative in "xy"]
    assert asked.images_total == 8 and asked.n_iter == 3


def test_some_combinations_take_the_negative_prompts_in_turn():
    given = script(is_combinatorial=True, max_generations=3, combinatorial_batches=2)
    asked = request("{a|b|c|d}", given=given, negative_prompt="{x|y}")
    pairs = [own.prompt + own.negative_prompt for own in asked.texts]
    assert pairs == ["ax", "by", "cx"] * 2


def test_a_fixed_seed_is_every_images_own_and_repeated_combinations_have_the_next():
    assert seeds(request(given=script(use_fixed_seed=True), n_iter=3)) == [7, 7, 7]
    given = script(use_fixed_seed=True, is_combinatorial=True, combinatorial_batches=2)
    assert seeds(request(given=given)) == [7, 7, 7, 8, 8, 8]


def seeds(asked: RenderRequest) -> list[int]:
    from random import Random

    return [seed for seed, _ in seeds_of(asked, Random(0))]


def test_unlinked_prompts_change_while_the_seed_stays():
    template = "{a|b|c|d|e|f|g|h}" * 8
    given = script(unlink_seed_from_prompt=True)
    assert texts(request(template, given=given)) != texts(request(template, given=given))


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompt": "a {b"}, 422, "is not closed"),
        ({"prompt": "a __nobody__"}, 422, "'nobody' is unknown"),
        ({"negative_prompt": "${x}"}, 422, "variable"),
        ({"prompt": "{1|2|3|4|5|6|7|8|9}" * 3, "given": script(is_combinatorial=True)}, 422, "more than 100 pictures"),
        ({"given": script(is_magic_prompt=True)}, 501, "Magic prompts are not installed"),
        ({"given": script(is_attention_grabber=True)}, 501, "not installed"),
        ({"given": script(enable_jinja_templates=True)}, 501, "not installed"),
        ({"given": script(no_image_generation=True)}, 501, "not installed"),
        ({"given": script(is_feeling_lucky=True)}, 501, "not installed"),
        ({"given": script("dynamic prompts!")}, 422, "Script 'dynamic prompts!' not found"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a1111s_shape(body, status, message):
    with pytest.raises(HandlerError, match=message) as raised:
        request(**body)
    assert raised.value.status == status


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (script(is_combinatorial="maybe"), 1),
        (script(combinatorial_batches=0), 2),
        (script(max_generations=-1), 15),
        (script(max_generations=[]), 15),
    ],
)
def test_an_argument_of_another_type_is_named_by_its_place(given, place):
    with pytest.raises(WireError) as raised:
        request(given=given)
    assert raised.value.details[0]["loc"] == ["body", "alwayson_scripts", NAME.lower(), "args", place]


def test_too_long_a_prompt_is_named_as_the_field_it_comes_from(settings):
    with pytest.raises(InvalidRequestError) as raised:
        request("{2$$" + "x" * 9000 + "|" + "y" * 9000 + "}")
    assert raised.value.errors[0].field == "prompt"


def test_an_enormous_number_of_pictures_is_refused_before_anything_is_expanded():
    with pytest.raises(InvalidRequestError):
        request(n_iter=10**9)
    assert request(n_iter=500).texts == ()


# --- the call ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def door() -> Client:
    a_platform()
    return Client(headers={"Authorization": f"Bearer {a_caller().token.text}"})


def picture_of(prompt: str) -> bytes:
    texts, data = PngInfo(), io.BytesIO()
    texts.add_text("prompt", prompt)
    Image.new("RGB", (8, 8)).save(data, "PNG", pnginfo=texts)
    return data.getvalue()


def prompt_of(picture: str) -> str:
    return Image.open(io.BytesIO(base64.b64decode(picture))).info["prompt"]


def deliver_all() -> None:
    while RenderImage.objects.filter(state="waiting").exists():
        batch = begun(f"w{RenderImage.objects.exclude(state='waiting').count()}")
        for image in batch.images:
            picture = a_stored_picture(image, picture_of(image.recipe.prompt))
            image_deliver(batch=batch, image=image, picture=picture, gpu_us=1000)


@pytest.fixture
def worker(monkeypatch) -> None:
    """Pictures that say what was drawn."""

    async def rendered(job_id) -> None:
        await sync_to_async(deliver_all)()

    monkeypatch.setattr(views, "job_wait", rendered)


@pytest.mark.django_db
def test_recipes_and_answer_have_the_resolved_prompts(door, worker):
    answer = post(door, **SMALL, prompt="a {red|green|blue} cat", n_iter=4, alwayson_scripts=script())
    job = RenderJob.objects.get()
    wanted = texts(RenderRequest.from_json(job.request))
    assert answer.info["all_prompts"] == wanted and answer.info["prompt"] == wanted[0] and len(set(wanted)) > 1
    assert [prompt_of(image) for image in answer.json()["images"]] == wanted
    assert answer.json()["parameters"]["prompt"] == "a {red|green|blue} cat"
    again = post(door, **SMALL, prompt="a {red|green|blue} cat", n_iter=4, alwayson_scripts=script())
    assert again.info["all_prompts"] == wanted


@pytest.mark.django_db
def test_networks_and_embeddings_are_those_of_the_images_own_prompt(door, worker):
    for kind, name in ((AssetKind.LORA, "ink"), (AssetKind.LORA, "oil"), (AssetKind.EMBEDDING, "bad-hands")):
        a_checkpoint(name, kind=kind, is_default=False, listed_hash="0123456789ab")
    given = script(is_combinatorial=True)
    post(door, **SMALL, prompt="a cat{ <lora:ink:1>| <lora:oil:0.5>|, bad-hands|}", alwayson_scripts=given)
    job = RenderJob.objects.get()
    found = [(own["networks"], own["embeddings"]) for own in job.lock["own"]]
    names = [[use["weights"]["name"] for uses in both for use in uses] for both in found]
    assert names == [["ink"], ["oil"], ["bad-hands"], []]
    keys = list(job.images.order_by("index").values_list("pass_key", flat=True))
    assert len({keys[0], keys[1], keys[2]}) == 3 and keys[2] == keys[3]  # embeddings alone share a pass
    assert {asset.name for asset in job.assets.all()} >= {"ink", "oil", "bad-hands"} and job.warnings == []


@pytest.mark.django_db
def test_what_is_unknown_in_several_prompts_is_said_once(door, worker):
    answer = post(door, **SMALL, prompt="{a|b|c|d} <lora:nobody:1>", n_iter=9, alwayson_scripts=script())
    assert answer.headers["X-Warnings"].count("nobody") == 1


@pytest.mark.django_db
def test_styles_are_applied_first_and_wildcards_are_the_teams(door, worker):
    from assets.models import PromptStyle

    PromptStyle.objects.create(name="woods", prompt="{prompt} in __forest__")
    Wildcard.objects.create(name="forest", text="an oak wood")
    Wildcard.objects.create(name="secret", text="x", team=a_caller("team-b", "bob").team)
    answer = post(door, **SMALL, prompt="a cat", styles=["woods"], alwayson_scripts=script())
    assert answer.info["all_prompts"] == ["a cat in an oak wood"]
    refused = post(door, **SMALL, prompt="__secret__", alwayson_scripts=script())
    assert (refused.status_code, refused.json()["detail"]) == (422, "Dynamic prompts: Wildcard 'secret' is unknown.")


@pytest.mark.django_db
def test_too_many_pictures_and_wrong_templates_store_nothing(door):
    for body in ({"prompt": "{a", "n_iter": 1}, {"prompt": "a", "n_iter": 500}):
        assert post(door, **SMALL, **body, alwayson_scripts=script()).status_code == 422
    assert not RenderJob.objects.exists()


@pytest.mark.django_db
def test_cells_of_a_selectable_script_are_expanded_each_by_its_seed(door, worker):
    arguments = [1, "7,8,9", [], 0, "", [], 0, "", [], False, True]
    plot = {"script_name": "X/Y/Z plot", "script_args": arguments}
    answer = post(door, **SMALL, **plot, prompt="{a|b|c|d|e|f}", alwayson_scripts=script())
    drawn = [texts(RenderRequest.from_json(job.request))[0] for job in RenderJob.objects.order_by("script_cell")]
    assert answer.status_code == 200
    assert drawn == [texts(request("{a|b|c|d|e|f}", seed=seed))[0] for seed in (7, 8, 9)]
    given = script(is_combinatorial=True)
    assert post(door, **SMALL, **plot, prompt="{a|b}", alwayson_scripts=given).status_code == 422
    assert ScriptCall.objects.count() == 1


@pytest.mark.django_db
def test_wildcards_cost_one_query_each_however_many_pictures(door, worker, django_assert_max_num_queries):
    Wildcard.objects.create(name="tree", text="oak\nelm")
    from assets.wildcards import lines_for

    caller = a_caller()
    values = wire.parsed(
        {**SMALL, "prompt": "__tree__ __tree__", "n_iter": 50, "alwayson_scripts": script()}, {**TXT2IMG, **OURS}
    )
    made = to_request(values, options=default_options())
    with django_assert_max_num_queries(4):
        prompts_resolve(made, values, wildcards=lines_for(caller), most=100)


def test_the_script_is_listed_with_an_argument_for_each_place():
    name = NAME.lower()
    assert all(name in listed for listed in scripts_listed().values())
    listed = known_scripts()[name]
    assert [each["value"] for each in listed["args"]] == [default for _, default in ARGUMENTS.values()]


def test_arguments_are_at_the_places_where_the_extension_has_them():
    assert list(ARGUMENTS).index("use_fixed_seed") == 10 and list(ARGUMENTS)[-3] == "max_generations"
