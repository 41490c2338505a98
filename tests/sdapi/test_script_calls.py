"""Scripts as jobs: each step is begun once, carried on without the client, stopped as a whole."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from django.core.files.storage import default_storage
from PIL import Image

from common.errors import ConflictError, InvalidRequestError
from renderjobs.compat.sdapi.errors import HandlerError
from renderjobs.compat.sdapi.script_calls import (
    script_advance,
    script_begin,
    script_interrupt,
    scripts_to_advance,
)
from renderjobs.models import RenderImage, RenderJob, ScriptCall
from tests.factories import a_caller, a_platform

pytestmark = pytest.mark.django_db
SMALL = {"prompt": "a ring", "width": 64, "height": 64, "steps": 2, "seed": 7}


@pytest.fixture
def caller():
    a_platform()
    return a_caller()


def picture_text() -> str:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def plot(**changes: Any) -> dict[str, Any]:
    """Steps 1, 2 and 3, beside one another."""
    arguments = [4, "1,2,3", [], 0, "", [], 0, "", [], False, True]
    return {**SMALL, "script_name": "X/Y/Z plot", "script_args": arguments, **changes}


def loopback(loops: int = 3) -> dict[str, Any]:
    arguments = [loops, 0.5, "Linear", "None"]
    return {**SMALL, "init_images": [picture_text()], "script_name": "loopback", "script_args": arguments}


def begin(caller, body: dict[str, Any], *, tab: str = "txt2img", **more: Any) -> ScriptCall:
    return script_begin(caller=caller, body=body, tab=tab, most_images=100, **more)


def deliver_all(call: ScriptCall) -> None:
    """What workers do, in a moment."""
    from django.core.files.base import ContentFile

    data = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(data, "PNG")
    for image in RenderImage.objects.filter(job__script_call=call, state="waiting"):
        key = default_storage.save(f"{image.pk}.png", ContentFile(data.getvalue()))
        stored = {"file_key": key, "sha256": "0" * 64, "size_bytes": len(data.getvalue()), "infotext": "x"}
        RenderImage.objects.filter(pk=image.pk).update(state="delivered", **stored)
    RenderJob.objects.filter(script_call=call).exclude(state="cancelled").update(state="succeeded")


def cells(call: ScriptCall) -> list[int]:
    return list(
        RenderJob.objects.filter(script_call=call).order_by("script_cell").values_list("script_cell", flat=True)
    )


def test_c3_every_cell_of_a_plot_is_a_job_of_its_own_at_once(caller):
    call = begin(caller, plot())
    jobs = RenderJob.objects.filter(script_call=call).order_by("script_cell")
    assert [job.request["steps"] for job in jobs] == [1, 2, 3] and {job.source for job in jobs} == {"sdapi"}
    assert set(script_advance(call.pk).waiting) == {job.pk for job in jobs}


def test_the_answer_comes_when_all_jobs_have_ended_and_again_after_that(caller):
    call = begin(caller, plot())
    deliver_all(call)
    first, again = script_advance(call.pk), script_advance(call.pk)
    assert first.answer.info == again.answer.info and len(first.answer.shown) == 4  # the grid and three pictures
    call.refresh_from_db()
    assert call.ended_at is not None and cells(call) == [0, 1, 2]


def test_a_script_that_goes_in_rounds_begins_the_next_when_the_last_has_ended(caller):
    call = begin(caller, loopback(), tab="img2img")
    rounds = [cells(call)]
    for _ in range(2):
        deliver_all(call)
        assert script_advance(call.pk).answer is None
        rounds.append(cells(call))
    deliver_all(call)
    assert script_advance(call.pk).answer is not None and rounds == [[0], [0, 1], [0, 1, 2]]


def test_rounds_go_on_after_the_client_has_left(caller):
    call = begin(caller, loopback(2), tab="img2img")
    assert scripts_to_advance() == []
    deliver_all(call)
    assert scripts_to_advance() == [call.pk]
    script_advance(call.pk)
    assert cells(call) == [0, 1] and scripts_to_advance() == []
    deliver_all(call)
    script_advance(call.pk)
    assert scripts_to_advance() == []


def test_going_on_twice_begins_a_round_once(caller):
    call = begin(caller, loopback(2), tab="img2img")
    deliver_all(call)
    assert script_advance(call.pk).waiting == script_advance(call.pk).waiting
    assert cells(call) == [0, 1]


def test_a_round_that_was_killed_while_it_was_begun_leaves_nothing_and_is_begun_again(caller, monkeypatch):
    call = begin(caller, loopback(2), tab="img2img")
    deliver_all(call)
    with monkeypatch.context() as killing:
        killing.setattr("renderjobs.submission.wake_on_commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            script_advance(call.pk)
    assert cells(call) == [0]
    script_advance(call.pk)
    assert cells(call) == [0, 1]


def test_an_interrupted_script_begins_nothing_more_and_answers_with_what_there_is(caller):
    call = begin(caller, loopback(3), tab="img2img")
    deliver_all(call)
    script_advance(call.pk)
    script_interrupt(call, cause="interrupted by the caller")
    assert list(RenderJob.objects.values_list("state", flat=True).order_by("script_cell")) == ["succeeded", "cancelled"]
    answer = script_advance(call.pk).answer
    assert len(answer.shown) == 1 and cells(call) == [0, 1]


def test_the_same_task_id_or_key_is_the_same_call(caller):
    first = begin(caller, plot(), task_id="shot-1")
    assert begin(caller, plot(prompt="another"), task_id="shot-1") == first
    keyed = begin(caller, plot(), idempotency_key="k")
    assert begin(caller, plot(), idempotency_key="k") == keyed and ScriptCall.objects.count() == 2
    with pytest.raises(ConflictError):
        begin(caller, plot(prompt="another"), idempotency_key="k")


def test_a_task_id_belongs_to_one_member(caller):
    begin(caller, plot(), task_id="shot-1")
    with pytest.raises(ConflictError):
        begin(a_caller(user="bob"), plot(), task_id="shot-1")


REFUSED = {
    "an unknown script": ({"script_name": "nothing"}, 422),
    "a script of the other tab": ({"script_name": "loopback"}, 422),
    "a value that is none": ({"script_args": [4, "many", [], 0, "", [], 0, "", []]}, 500),
    "too many pictures": ({"script_args": [4, "1-101", [], 0, "", [], 0, "", []]}, 422),
}


@pytest.mark.parametrize(("change", "status"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_leaves_nothing(caller, tmp_path, change, status):
    with pytest.raises(HandlerError) as refused:
        begin(caller, plot(**change))
    assert refused.value.status == status and not ScriptCall.objects.exists() and not RenderJob.objects.exists()
    assert not [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]


def test_one_cell_that_is_refused_refuses_the_call_and_leaves_nothing(caller):
    body = plot(script_args=[4, "1,2", [], 0, "", [], 0, "", []], override_settings={"sd_model_checkpoint": "nobody"})
    with pytest.raises(Exception, match="nobody"):
        begin(caller, body)
    assert not ScriptCall.objects.exists() and not RenderJob.objects.exists()


def alternative(*changes: tuple[int, Any]) -> dict[str, Any]:
    """img2img alternative test, its arguments changed at their places."""
    arguments = ["", True, True, "a blue ring", "blurry", True, 5, True, 2.0, 0.3, True]
    for place, value in changes:
        arguments[place] = value
    return {
        **SMALL,
        "init_images": [picture_text()],
        "script_name": "img2img alternative test",
        "script_args": arguments,
    }


def test_the_alternative_test_is_one_job_that_knows_how_to_find_its_noise(caller):
    call = begin(caller, alternative(), tab="img2img")
    asked = RenderJob.objects.get(script_call=call).request
    assert asked["img2img"][0]["reconstruction"] == {
        "prompt": "a blue ring", "negative_prompt": "blurry", "cfg_scale": 2.0, "steps": 5, "randomness": 0.3,
        "sigma_adjustment": True,
    }  # fmt: skip
    assert (asked["prompt"], asked["sampler"], asked["steps"], asked["denoising_strength"]) == (
        "a blue ring", "Euler", 5, 1.0,
    )  # fmt: skip


@pytest.mark.parametrize("wrong", [(6, 10**9), (6, 0), (8, 10**6), (9, 2), (9, float("nan")), (3, "x" * 20_000)])
def test_the_alternative_test_refuses_what_no_search_for_noise_takes(caller, wrong):
    with pytest.raises(InvalidRequestError):
        begin(caller, alternative(wrong), tab="img2img")
    assert not ScriptCall.objects.exists() and not RenderJob.objects.exists()


@pytest.mark.parametrize("wrong", [(6, "many"), (8, None), (9, [])])
def test_the_alternative_test_answers_arguments_of_other_types_as_a1111_does(caller, wrong):
    with pytest.raises(HandlerError) as refused:
        begin(caller, alternative(wrong), tab="img2img")
    assert refused.value.status == 500 and refused.value.error in ("ValueError", "TypeError")
