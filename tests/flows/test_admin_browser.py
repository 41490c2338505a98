"""The admin in a real browser: what scripts do on its pages."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import requests
from playwright.sync_api import BrowserContext, Page, expect

from tests.flows.conftest import ROOT, Client, RunningPlatform, chromium_browser, patient_context, running_platform
from tests.services import postgres_server, wait_until
from tests.weights import SD1_KEYS

PASSWORD = "a long password"
CHORES = ["-m", "celery", "-A", "renderjobs", "worker", "--loglevel", "INFO", "--concurrency", "1", "-Q", "chores"]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    import sys

    with (
        postgres_server() as server,
        running_platform(
            tmp_path_factory.mktemp("admin"), DATABASE_URL=server.url, DJANGO_SUPERUSER_PASSWORD=PASSWORD
        ) as platform,
    ):
        platform.manage("createsuperuser", "--noinput", "--username", "root", "--email", "root@localhost")
        platform.start("chores", [sys.executable, *CHORES])
        yield platform


@pytest.fixture(scope="module")
def browser(platform: RunningPlatform) -> Iterator[BrowserContext]:
    with chromium_browser() as opened:
        context = patient_context(opened, platform)
        page = context.new_page()
        page.goto("/admin/login/")
        page.fill("[name=username]", "root")
        page.fill("[name=password]", PASSWORD)
        page.click("[type=submit]")
        expect(page).to_have_url(f"{platform.address}/admin/")
        yield context


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def test_p2_a_dropped_connection_in_the_middle_of_an_upload_loses_nothing(platform, page, tmp_path):
    source = tmp_path / "dreamy.safetensors"
    shutil.copy(ROOT / "miniature" / "renderkiln-miniature.safetensors", source)
    dropped: list[str] = []

    def drop_the_first(route) -> None:
        if route.request.method == "PATCH" and not dropped:
            dropped.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    page.route("**/api/v1/uploads/*", drop_the_first)
    page.goto("/admin/assets/asset/add/")
    page.set_input_files("input[name=file]", source)
    page.click("[name=_save]")
    expect(page).to_have_url(f"{platform.address}/admin/assets/asset/")
    assert dropped
    wait_until(lambda: "dreamy" in checkpoints(platform), what="The approval of the upload")


def test_an_administrator_goes_from_a_new_team_to_the_price_of_one_image(platform, page, tmp_path):
    """Team, member, token and budget; a checkpoint; a rate card; a job of a template; its progress; its cost; the month's CSV."""
    platform.start_worker()
    add(page, "accounts/user", username="walter", password1=PASSWORD, password2=PASSWORD)
    page.goto("/admin/accounts/team/add/")
    page.fill("[name=name]", "film")
    page.click("#memberships-group .add-row a, #memberships-group .add-row")
    page.fill("[name=memberships-0-user]", "walter")
    save(page)
    token = add(page, "accounts/apitoken", user="walter", team="film", name="pipeline")
    text = re.search(r"rk_[\w-]{40,}", token)[0]  # type: ignore[index]
    add(page, "billing/budget", name="November", scope="Team", team="film", limit="10", currency="USD")
    card(page)
    upload(page, tmp_path, "walked")
    wait_until(lambda: "walked" in checkpoints(platform), what="The approval of the upload")
    template = {"prompt": "a red ring", "width": 64, "height": 64, "steps": 8, "seed": 7, "n_iter": 4,
                "override_settings": {"sd_model_checkpoint": "walked"}}  # fmt: skip
    add(page, "renderjobs/batchtemplate", team="film", name="rings", kind="Txt2Img", request=json.dumps(template))
    page.goto("/admin/renderjobs/batchtemplate/")
    page.click("#result_list >> text=rings")
    photograph(page, "template")
    page.click("text=Submit a job")
    page.dblclick("button:has-text('Submit'), [type=submit]:has-text('Submit')")  # one job all the same: see its price
    expect(page.locator("#pictures")).to_be_visible()
    photograph(page, "job-begun")
    job = page.url
    expect(page.locator("#pictures img")).to_have_count(4)  # without a click: the page keeps itself up to date
    expect(page.locator("#renderjob_form")).to_contain_text("Succeeded")
    photograph(page, "job")
    follow(page, "#pictures b >> nth=1")
    photograph(page, "image")
    price = cost(page.inner_text("body"))
    assert price == Decimal("0.065536")  # 64 × 64 pixels × 8 steps, two dollars per megapixel-step
    page.goto("/admin/")
    photograph(page, "dashboard")
    follow(page, "text=Costs")
    photograph(page, "costs")
    for name in ("film", "none", "root", "walked", job.split("/")[-3]):
        follow(page, f".rk-table a >> text='{name}'")
    figures = page.locator(".rk-card:has(h2:has-text('dearest first')) td:nth-child(2)")
    assert {cost(figure) for figure in figures.all_inner_texts()} == {price}
    photograph(page, "costs-image")
    with page.expect_download() as download:
        page.click("text='every image, CSV'")
    lines = list(csv.DictReader(download.value.path().read_text().splitlines()))
    assert [Decimal(line["amount"]) for line in lines] == [price] * 4
    spent = requests.get(f"{platform.address}/api/v1/usage", headers={"Authorization": f"Bearer {text}"}, timeout=60)
    assert [Decimal(row["amount"]) for row in spent.json()["results"]] == [4 * price]
    platform.assert_invariants()


def add(page: Page, model: str, **fields: str) -> str:
    """Fill the model's form of a new object, whatever kind each field is; the page that follows, as text."""
    page.goto(f"/admin/{model}/add/")
    for name, value in fields.items():
        field = page.locator(f"[name={name}]").first
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(label=value, force=True)
        else:
            field.fill(value)
    return save(page)


def save(page: Page) -> str:
    with page.expect_navigation():
        page.click("[name=_save]")
    assert not page.url.endswith("/add/"), page.inner_text("form")
    return page.inner_text("body")


def follow(page: Page, link: str) -> None:
    """To the page behind it; what is asked for next is not to be found on the page before."""
    with page.expect_navigation():
        page.click(link)


def card(page: Page) -> None:
    """Draft and publish a rate card that comes into force within seconds; a later one where that was too soon to be published."""
    page.goto("/admin/billing/ratecard/add/")
    page.fill("[name=name]", "walked")
    page.click("#prices-group .add-row a, #prices-group .add-row")
    page.fill("[name=prices-0-per_gpu_second]", "0.001")
    page.fill("[name=prices-0-per_megapixel_step]", "2")
    for seconds in (8, 40, 160):
        begin = datetime.now(UTC) + timedelta(seconds=seconds)
        page.fill("[name=valid_from_0]", f"{begin:%Y-%m-%d}")
        page.fill("[name=valid_from_1]", f"{begin:%H:%M:%S}")
        follow(page, "[name=_save]")
        if "valid in the past" in page.inner_text("body"):
            continue
        publish(page, "walked")
        if "walked is published" in page.inner_text("body"):
            break
        follow(page, "#result_list tr:has-text('walked') th a")
    expect(page.locator("#result_list tr:has-text('walked')")).to_contain_text("published", ignore_case=True)
    photograph(page, "ratecards")
    time.sleep(max(0.0, (begin - datetime.now(UTC)).total_seconds()))


def publish(page: Page, name: str) -> None:
    page.wait_for_function(
        "document.querySelector('[name=action]').closest('[x-data]')._x_dataStack"
    )  # its scripts are at work
    page.check(f"#result_list tr:has-text('{name}') [name=_selected_action]", force=True)
    page.select_option("[name=action]", "publish", force=True)
    follow(page, "[name=index]")


def upload(page: Page, folder: Path, name: str) -> None:
    source = folder / f"{name}.safetensors"
    shutil.copy(ROOT / "miniature" / "renderkiln-miniature.safetensors", source)
    page.goto("/admin/assets/asset/add/")
    page.set_input_files("input[name=file]", source)
    page.click("[name=_save]")
    expect(page).to_have_url(re.compile("/admin/assets/asset/$"))


def cost(text: str) -> Decimal:
    return Decimal(re.search(r"(\d+[.]\d{6}) USD", text)[1])  # type: ignore[index]


def photograph(page: Page, name: str) -> None:
    """At the widths of a desk and of a phone, where SCREENSHOTS names a folder to look at them in."""
    if folder := os.environ.get("SCREENSHOTS"):
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 900})
            page.screenshot(path=f"{folder}/{name}-{width}.png", full_page=True)
        page.set_viewport_size({"width": 1280, "height": 720})


def test_p2_a_refused_upload_says_why_beside_its_bar(page, tmp_path):
    source = tmp_path / "empty.safetensors"
    source.write_bytes(b"")
    page.goto("/admin/assets/asset/add/")
    page.set_input_files("input[name=file]", source)
    page.click("[name=_save]")
    expect(page.locator(".rk-upload-state")).to_contain_text("accepted are 1 to")


def checkpoints(platform: RunningPlatform) -> list[str]:
    listed = requests.get(
        f"{platform.address}/sdapi/v1/sd-models", headers={"Authorization": platform_token(platform)}, timeout=60
    )
    return [model["model_name"] for model in listed.json()]


def platform_token(platform: RunningPlatform) -> str:
    if not hasattr(platform, "kept_token"):
        platform.kept_token = Client(platform).token  # type: ignore[attr-defined]
    return platform.kept_token  # type: ignore[attr-defined,no-any-return]


@pytest.mark.slow
def test_p2_three_gigabytes_pass_through_in_little_memory(platform, page, tmp_path):
    """Sparse on our side; the platform cannot know. Both processes together may grow by 64 MB at most."""
    source = tmp_path / "huge.safetensors"
    shapes = {**SD1_KEYS, "model.diffusion_model.extra": [3 * 1024, 512, 1024]}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with source.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    before = {name: peak_kb(platform, name) for name in ("web", "chores")}
    page.goto("/admin/assets/asset/add/")
    page.set_input_files("input[name=file]", source)
    page.click("[name=_save]")
    expect(page).to_have_url(f"{platform.address}/admin/assets/asset/", timeout=200_000)
    wait_until(lambda: "huge" in checkpoints(platform), seconds=120, what="The approval of the upload")
    grown = sum(peak_kb(platform, name) - before[name] for name in before)
    print(f"grown by {grown} kB")
    assert grown < 64 * 1024


def peak_kb(platform: RunningPlatform, name: str) -> int:
    """The most memory the process and its children have ever had."""
    pid = platform.processes[name].pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = (line for one in (pid, *children) for line in Path(f"/proc/{one}/status").read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
