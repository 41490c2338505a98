"""What PAI-EAS's webui adds to A1111's calls: entries of alwayson_scripts, folders of one's own, answers of paths."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.files.storage import default_storage
from django.test import Client
from PIL import Image

from accounts.authentication import Caller
from common.errors import InvalidRequestError
from gpuworker.contract import Attachment, Picture, Rendered
from gpuworker.contract.outcome import CONTROL_MAP
from gpuworker.output import picture_store
from renderjobs.compat.eas.services import service_create
from renderjobs.compat.pai.answers import saved_answer
from renderjobs.compat.pai.saving import saved_under
from renderjobs.compat.sdapi import views
from renderjobs.delivery import image_deliver, image_fail
from renderjobs.models import RenderJob, ScriptCall
from renderjobs.outputs import MAX_FOLDER
from renderjobs.submission import job_cancel
from tests.factories import a_caller, a_checkpoint, a_platform
from tests.renderjobs.test_delivery import begun
from tests.sdapi.test_txt2img import Answer, post_to

pytestmark = pytest.mark.django_db
MOUNT = "/code/stable-diffusion-webui/data"
SMALL = {"prompt": "girls", "steps": 3, "width": 64, "height": 64}
MAP = Attachment(CONTROL_MAP, Picture(8, 8, bytes(192)))
DATE, UUID = r"\d{4}-\d\d-\d\d", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


@pytest.fixture
def caller():
    a_platform()
    return a_caller()


@pytest.fixture
def door(caller) -> Client:
    return Client(headers={"Authorization": caller.token.text})


@pytest.fixture
def ended(monkeypatch):
    """Whoever waits for a job finds it ended by the given function."""

    def by(end) -> None:
        async def waited(job_id) -> None:
            await sync_to_async(lambda: end(RenderJob.objects.get(pk=job_id)))()

        monkeypatch.setattr(views, "job_wait", waited)

    return by


def deliver(job: RenderJob, *attachments: Attachment) -> None:
    """Render the job as a worker does, in no time, and store the files where a worker stores them."""
    if job.state != "queued":
        return
    batch = begun()
    for image in batch.images:
        rendered = Rendered(0, Picture(64, 64, bytes(64 * 64 * 3)), gpu_us=1000, attachments=attachments)
        image_deliver(batch=batch, image=image, picture=picture_store(image, rendered), gpu_us=1000)


@pytest.fixture
def worker(ended):
    ended(deliver)


def a_picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def txt2img(door: Client, scripts: dict[str, Any], **body: Any) -> Answer:
    return post_to(door, "sdapi/v1/txt2img", {**SMALL, **body, "alwayson_scripts": scripts})


def key_of(path: str, team_id: int) -> str:
    """Where a caller finds the object in the bucket: ``path.replace(mount_path, bucket)``."""
    return path.replace(MOUNT, f"{team_id}/files/data")


def test_two_pictures_are_answered_as_a_grid_and_two_paths_in_seed_order(door, worker, caller):
    answer = txt2img(door, {"save_dir": f"{MOUNT}/outputs", "id_task": "14837"}, n_iter=2, seed=1146644551).json()
    parameters = answer["parameters"]
    assert list(answer) == ["images", "parameters", "info"] and answer["images"] == []
    assert list(parameters) == ["id_task", "status", "image_url", "seed", "error_msg", "image_mask_url", "total_time"]
    assert parameters | {"id_task": "14837", "status": 0, "seed": "1146644551,1146644552", "error_msg": "",
                         "image_mask_url": ""} == parameters  # fmt: skip
    assert isinstance(parameters["total_time"], float) and parameters["total_time"] >= 0
    grid, first, second = parameters["image_url"].split(",")
    assert re.fullmatch(rf"{MOUNT}/outputs/txt2img-grids/{DATE}/grid-\d{{6}}-{UUID}\.png", grid)
    assert re.fullmatch(rf"{MOUNT}/outputs/txt2img-images/{DATE}/\d{{6}}-{UUID}-1146644551\.png", first)
    assert re.fullmatch(rf"{MOUNT}/outputs/txt2img-images/{DATE}/\d{{6}}-{UUID}-1146644552\.png", second)
    for path in (grid, first, second):
        assert default_storage.exists(key_of(path, caller.team.pk)), path


def test_the_paths_end_as_the_keys_of_the_jobs_rows(door, worker, caller):
    paths = txt2img(door, {"save_dir": f"{MOUNT}/outputs"}, n_iter=2).json()["parameters"]["image_url"].split(",")
    job = RenderJob.objects.get()
    keys = [job.grid_key, *job.images.order_by("index").values_list("file_key", flat=True)]
    assert [key_of(path, caller.team.pk) for path in paths] == keys


def test_one_picture_has_no_grid_and_no_id_is_null(door, worker):
    parameters = txt2img(door, {"save_dir": "tmp/outputs"}, seed=7).json()["parameters"]
    assert parameters["id_task"] is None and parameters["seed"] == "7"
    assert re.fullmatch(rf"tmp/outputs/txt2img-images/{DATE}/\d{{6}}-{UUID}-7\.png", parameters["image_url"])


def test_the_instance_that_rendered_is_named(door, worker):
    assert json.loads(txt2img(door, {"save_dir": "tmp"}).json()["info"]) == {"hostname": "w1"}


def test_control_maps_have_paths_of_their_own_one_per_picture(door, ended, caller):
    ended(lambda job: deliver(job, MAP))
    unit = {"module": "canny", "image": "R0lGODdhAQABAIEAAAAAAAAAAAAAAAAAACwAAAAAAQABAAAIBAABBAQAOw=="}
    scripts = {"save_dir": f"{MOUNT}/outputs", "controlnet": {"args": [unit]}}
    maps = txt2img(door, scripts, n_iter=2).json()["parameters"]["image_mask_url"].split(",")
    assert len(set(maps)) == 2
    for path in maps:
        assert re.fullmatch(rf"{MOUNT}/outputs/controlnet_mask/{DATE}/\d{{5,}}\.png", path)
        assert default_storage.exists(key_of(path, caller.team.pk))


def test_another_format_keeps_its_ending(door, worker):
    answer = txt2img(door, {"save_dir": "tmp"}, override_settings={"samples_format": "webp"})
    assert answer.json()["parameters"]["image_url"].endswith(".webp")


def test_a_value_may_stand_in_args_and_names_in_any_case(door, worker):
    a_checkpoint("other")
    scripts = {"Save_Dir": {"args": ["tmp"]}, "SD_Model_Checkpoint": {"args": ["other.safetensors"]}, "id_task": 3}
    assert txt2img(door, scripts).json()["parameters"]["id_task"] == "3"
    assert RenderJob.objects.get().checkpoint.name == "other"


@pytest.mark.parametrize("scripts", [{}, {"save_dir": ""}, {"save_dir": None}, {"id_task": "1", "uid": "2"}])
def test_without_a_save_dir_the_answer_is_a1111s(door, worker, scripts):
    answer = txt2img(door, scripts).json()
    assert len(answer["images"]) == 1 and answer["parameters"]["alwayson_scripts"] == scripts
    job = RenderJob.objects.get()
    assert job.images.get().file_key.startswith(f"{job.team_id}/{job.created_at:%Y/}")


def test_the_callers_user_is_a_tag_by_which_costs_are_reported(door, worker):
    txt2img(door, {"uid": "123", "id_task": "14837"})
    assert RenderJob.objects.get().tags == {"uid": "123", "id_task": "14837"}


def test_a_failed_job_says_so_in_its_body_and_its_status(door, ended):
    def fail(job: RenderJob) -> None:
        batch = begun()
        image_fail(batch=batch, image=batch.images[0], code="nan", message="The picture is all NaN.", retryable=False)

    ended(fail)
    answer = txt2img(door, {"save_dir": "tmp", "id_task": "5"})
    parameters = answer.json()["parameters"]
    assert (answer.status_code, parameters["status"], parameters["error_msg"]) == (500, 500, "The picture is all NaN.")
    assert (parameters["id_task"], parameters["image_url"], parameters["seed"]) == ("5", "", "")


def test_an_interrupted_job_without_pictures_is_no_success(door, ended):
    ended(lambda job: job_cancel(job=job))
    parameters = txt2img(door, {"save_dir": "tmp"}).json()["parameters"]
    assert parameters["status"] != 0 and "interrupted" in parameters["error_msg"]


def test_a_repeated_call_gets_the_same_paths(door, worker):
    calls = [txt2img(door, {"save_dir": "tmp"}, n_iter=2, force_task_id="t1").json() for _ in range(2)]
    assert calls[0] == calls[1] and RenderJob.objects.count() == 1
    assert saved_answer(RenderJob.objects.get()) == calls[0]


def test_two_jobs_never_share_a_file(door, worker):
    urls = [txt2img(door, {"save_dir": "tmp"}, seed=1).json()["parameters"]["image_url"] for _ in range(2)]
    assert urls[0] != urls[1]


def test_restored_faces_are_passed_over_for_these_clients_and_said(door, worker):
    answer = txt2img(door, {"save_dir": "tmp"}, restore_faces=True)
    assert answer.status_code == 200 and answer.headers["X-Ignored-Fields"] == "restore_faces"
    assert txt2img(door, {}, restore_faces=True).status_code == 501


def test_a_link_that_txt2img_has_no_use_for_is_named(door, worker):
    answer = txt2img(door, {"save_dir": "tmp", "image_link": "R0lGODdh"})
    assert answer.headers["X-Ignored-Fields"] == "alwayson_scripts.image_link"


@pytest.mark.parametrize("name", ["save_dir", "image_link", "sd_vae", "sd_model_checkpoint"])
@pytest.mark.parametrize("value", [3, [], True, {"args": [3]}])
def test_an_addition_that_is_no_text_is_refused(door, name, value):
    answer = txt2img(door, {name: value})
    if value == []:
        assert answer.status_code == 422
    else:
        assert answer.json()["detail"][0]["loc"] == ["body", "alwayson_scripts", name]
    assert not RenderJob.objects.exists()


@pytest.mark.parametrize("name", ["id_task", "uid"])
@pytest.mark.parametrize("value", ["x" * 65, "a\x00b", "a\nb"])
def test_an_id_that_cannot_be_kept_is_refused(door, name, value):
    assert txt2img(door, {name: value}).status_code == 422 and not RenderJob.objects.exists()


ESCAPES = {
    "two dots": f"{MOUNT}/..",
    "two dots in between": f"{MOUNT}/outputs/../../../etc",
    "two dots at the beginning": "../../etc",
    "two dots with a dot": f"{MOUNT}/./..",
    "two dots and spaces": f"{MOUNT}/.. /x",
    "three dots": f"{MOUNT}/.../x",
    "hidden": f"{MOUNT}/.ssh",
    "elsewhere": "/etc/cron.d",
    "root": "/",
    "slashes": "//",
    "another host's share": "//server/share",
    "beside the mount": f"{MOUNT}-evil/outputs",
    "above the mount": "/code/stable-diffusion-webui",
    "a drive": "C:\\outputs",
    "a drive with a slash": "C:/outputs",
    "a backslash": f"{MOUNT}\\..\\x",
    "a backslash in a part": f"{MOUNT}/a\\b",
    "a NUL": f"{MOUNT}/a\x00b",
    "a NUL at the end": f"{MOUNT}/a\x00",
    "a line break": f"{MOUNT}/a\nb",
    "home": "~/x",
    "a variable": "$HOME/x",
    "percent-coded dots": f"{MOUNT}/%2e%2e/x",
    "fullwidth dots": f"{MOUNT}/\uff0e\uff0e/x",
    "one dot leader": f"{MOUNT}/\u2024\u2024/x",
    "two dot leader": f"{MOUNT}/\u2025/x",
    "fullwidth slash": f"{MOUNT}/a\uff0f..",
    "division slash": f"{MOUNT}/a\u2215..",
    "fraction slash": f"{MOUNT}/a\u2044..",
    "small backslash": f"{MOUNT}/a\ufe68..",
    "right to left": f"{MOUNT}/\u202egnp",
    "no width": f"{MOUNT}/.\u200b./x",
    "a Cyrillic letter": f"{MOUNT}/\u043eutputs",
    "a combining letter": f"{MOUNT}/e\u0301",
    "a fullwidth mount": "\uff0fcode/x",
    "a lone surrogate": f"{MOUNT}/\ud800",
    "a name that ends with a dot": f"{MOUNT}/a./x",
    "a stream": f"{MOUNT}/a:b",
    "a scheme": "file:///etc",
    "a bucket": "s3://bucket/x",
    "a wildcard": f"{MOUNT}/*",
    "a comma": f"{MOUNT}/a,b",
    "a low comma": f"{MOUNT}/a\u201ab",
    "too long": f"{MOUNT}/" + "a/" * 200,
    "a part too long": f"{MOUNT}/" + "a" * 150,
    "a folder too long for a key": f"{MOUNT}/" + "/".join(["a" * 70] * 2 + ["b" * 20]),
}


@pytest.mark.parametrize("save_dir", ESCAPES.values(), ids=ESCAPES)
def test_a_save_dir_never_leaves_the_teams_files(door, save_dir):
    answer = txt2img(door, {"save_dir": save_dir})
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "alwayson_scripts", "save_dir"]
    assert not RenderJob.objects.exists()


INSIDE = {
    f"{MOUNT}": "data",
    f"{MOUNT}/": "data",
    f"{MOUNT}/outputs": "data/outputs",
    f"{MOUNT}/outputs//a/./b/": "data/outputs/a/b",
    f"{MOUNT}-oss/outputs/txt2img": "data/outputs/txt2img",
    "tmp/outputs": "tmp/outputs",
    "data/outputs": "data/outputs",
    "./outputs": "outputs",
    f"{MOUNT}/team 1/v1.2 (final)": None,
    f"{MOUNT}/team 1/v1.2_final-3": "data/team 1/v1.2_final-3",
}


@pytest.mark.parametrize(("save_dir", "folder"), INSIDE.items())
def test_a_save_dir_is_a_folder_of_the_teams_files(door, worker, caller, save_dir, folder):
    answer = txt2img(door, {"save_dir": save_dir}, seed=1)
    if folder is None:
        assert answer.status_code == 422
        return
    path = answer.json()["parameters"]["image_url"]
    key = RenderJob.objects.get().images.get().file_key
    assert path.startswith(save_dir.rstrip("/") + "/txt2img-images/")
    assert key.startswith(f"{caller.team.pk}/files/{folder}/txt2img-images/")
    assert path.rpartition("/txt2img-images/")[2] == key.rpartition("/txt2img-images/")[2]
    root = Path(default_storage.path("")).resolve() / str(caller.team.pk) / "files"
    assert Path(default_storage.path(key)).resolve().is_relative_to(root)


def test_teams_with_one_save_dir_have_folders_of_their_own(door, worker, caller):
    other = a_caller("team-b", "eve")
    txt2img(door, {"save_dir": "tmp"})
    txt2img(Client(headers={"Authorization": other.token.text}), {"save_dir": "tmp"})
    keys = {job.team_id: job.images.get().file_key for job in RenderJob.objects.all()}
    assert set(keys) == {caller.team.pk, other.team.pk}
    assert all(key.startswith(f"{team}/files/tmp/") for team, key in keys.items())


def test_several_mount_paths_lead_to_folders_of_their_own(caller, settings):
    settings.EAS_MOUNTS = {"/mnt/a": "a", "/mnt/a/b": "inner", "/data": "d"}
    folders = {path: saved_under(caller, path).folder for path in ("/mnt/a/x", "/mnt/a/b/x", "/data/api_test")}
    assert folders == {"/mnt/a/x": "a/x", "/mnt/a/b/x": "inner/x", "/data/api_test": "d/api_test"}


def test_the_longest_folder_makes_keys_that_fit_their_columns(door, worker):
    save_dir = f"{MOUNT}/" + "/".join(["a" * 72] * 2)[: MAX_FOLDER - 5]
    assert txt2img(door, {"save_dir": save_dir}, n_iter=2, seed=2**32 - 2).status_code == 200
    job = RenderJob.objects.get()
    assert len(job.save_folder) <= MAX_FOLDER and len(job.grid_key) < 300


def test_a_services_token_has_the_services_mount_paths(caller):
    service, _ = service_create(name="sd_async", team=caller.team, mounts={"/mnt/oss": "bucket", "/mnt/nas": "nas"})
    of_service = Caller(user=service.user, team=service.team, token=service.token)
    assert saved_under(of_service, "/mnt/nas/outputs").folder == "nas/outputs"
    with pytest.raises(InvalidRequestError, match="/mnt/nas, /mnt/oss"):
        saved_under(of_service, f"{MOUNT}/outputs")
    assert saved_under(caller, f"{MOUNT}/outputs").folder == "data/outputs"


def test_a_script_keeps_its_sheet_beside_its_pictures(door, worker, caller):
    plot = {
        "script_name": "X/Y/Z plot",
        "script_args": [4, "1,2", [], 0, "", [], 0, "", [], False, True, False, False, 0],
    }
    scripts = {"save_dir": f"{MOUNT}/outputs", "id_task": "9"}
    answers = [txt2img(door, scripts, seed=7, force_task_id="t", **plot).json() for _ in range(2)]
    parameters = answers[0]["parameters"]
    grid, *pictures = parameters["image_url"].split(",")
    assert re.fullmatch(rf"{MOUNT}/outputs/txt2img-grids/{DATE}/grid-\d{{6}}-{UUID}\.png", grid)
    assert parameters["seed"] == ",".join(["7"] * len(pictures)) and parameters["id_task"] == "9"
    assert all(default_storage.exists(key_of(path, caller.team.pk)) for path in (grid, *pictures))
    assert answers[0] == answers[1] and ScriptCall.objects.get().saved_keys == [key_of(grid, caller.team.pk)]
    assert {job.tags["id_task"] for job in RenderJob.objects.all()} == {"9"}


def test_a_script_that_answers_one_picture_of_its_own_keeps_it_as_a_picture(door, worker, caller):
    arguments = ["Outpainting", 64, 8, ["left"], 1, 0.05]
    outpainting = {"script_name": "Outpainting mk2", "script_args": arguments, "init_images": [], "batch_size": 1}
    scripts = {"save_dir": f"{MOUNT}/outputs", "image_link": a_picture()}
    body = {**SMALL, "seed": 111, **outpainting, "alwayson_scripts": scripts}
    answer = post_to(door, "sdapi/v1/img2img", body).json()
    assert "parameters" in answer, answer
    path = answer["parameters"]["image_url"].split(",")[0]
    assert re.fullmatch(rf"{MOUNT}/outputs/img2img-images/{DATE}/\d{{6}}-{UUID}-111\.png", path)
    assert answer["parameters"]["seed"] == "111" and default_storage.exists(key_of(path, caller.team.pk))


def test_a_script_with_a_save_dir_that_leads_out_begins_nothing(door):
    plot = {
        "script_name": "X/Y/Z plot",
        "script_args": [4, "1,2", [], 0, "", [], 0, "", [], False, True, False, False, 0],
    }
    answer = txt2img(door, {"save_dir": "../x"}, **plot)
    assert answer.status_code == 422 and not RenderJob.objects.exists() and not ScriptCall.objects.exists()
