"""The admin in a real browser: what scripts do on its pages."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from tests.flows.conftest import ROOT, Client, RunningPlatform, running_platform
from tests.services import missing, wait_until
from tests.weights import SD1_KEYS

pytestmark = pytest.mark.timeout(240)
PASSWORD = "a long password"
CHORES = ["-m", "celery", "-A", "renderjobs", "worker", "--loglevel", "INFO", "--concurrency", "1", "-Q", "chores"]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    import sys

    with running_platform(tmp_path_factory.mktemp("admin"), DJANGO_SUPERUSER_PASSWORD=PASSWORD) as platform:
        platform.manage("createsuperuser", "--noinput", "--username", "root", "--email", "root@localhost")
        platform.start("chores", [sys.executable, *CHORES])
        yield platform


@pytest.fixture(scope="module")
def browser(platform: RunningPlatform) -> Iterator[BrowserContext]:
    program = shutil.which("chromium") or missing("chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = opened.new_context(base_url=platform.address)
        page = context.new_page()
        page.goto("/admin/login/")
        page.fill("[name=username]", "root")
        page.fill("[name=password]", PASSWORD)
        page.click("[type=submit]")
        expect(page).to_have_url(f"{platform.address}/admin/")
        yield context
        opened.close()


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
    expect(page).to_have_url(f"{platform.address}/admin/assets/asset/", timeout=60_000)
    assert dropped
    wait_until(lambda: "dreamy" in checkpoints(platform), seconds=60, what="The approval of the upload")


def test_p2_a_refused_upload_says_why_beside_its_bar(page, tmp_path):
    source = tmp_path / "empty.safetensors"
    source.write_bytes(b"")
    page.goto("/admin/assets/asset/add/")
    page.set_input_files("input[name=file]", source)
    page.click("[name=_save]")
    expect(page.locator(".rk-upload-state")).to_contain_text("accepted are 1 to")


def checkpoints(platform: RunningPlatform) -> list[str]:
    listed = requests.get(
        f"{platform.address}/sdapi/v1/sd-models", headers={"Authorization": platform_token(platform)}, timeout=30
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
