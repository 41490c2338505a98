"""Files, imports and the zoo in a real browser, with the chores that do the work: as the people of a team meet them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Page, expect

from tests.assets.zoo_server import SERVED, ModelServer, model_server
from tests.flows.conftest import RunningPlatform, running_platform
from tests.flows.test_admin_browser import CHORES, PASSWORD, browser, page, photograph  # noqa: F401  fixtures
from tests.prepared import MINIATURE
from tests.renderjobs.test_data_directory import a_png, write


@pytest.fixture(scope="module")
def models() -> Iterator[ModelServer]:
    with model_server() as server:
        server.data = MINIATURE.read_bytes()
        yield server


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, models: ModelServer) -> Iterator[RunningPlatform]:
    folder = tmp_path_factory.mktemp("server")
    zoo = folder / "zoo.json"
    shipped = {"title": "Rings", "kind": "checkpoint", "family": "sd1", "page": "https://example.com", "licence": "MIT",
               "size_bytes": None, "sha256": "", "hints": "20 steps of Euler a.", "prompt": "a red ring"}  # fmt: skip
    zoo.write_text(
        json.dumps(
            [
                {**shipped, "key": "ring", "filename": "zoo-rings.safetensors", "url": models.address},
                {
                    **shipped,
                    "key": "far",
                    "title": "Far rings",
                    "filename": "far.safetensors",
                    "url": f"http://192.0.2.1:{models.port}/x",
                },
            ]
        )
    )
    environment = {
        "DJANGO_SUPERUSER_PASSWORD": PASSWORD,
        "IMPORT_DIRS": str(folder / "old"),
        "ZOO_LIST": str(zoo),
        "FETCH_HOSTS": SERVED,
        "FETCH_PORTS": str(models.port),
        "FETCH_PRIVATE_NETWORKS": f"{SERVED}/32",
    }
    with running_platform(tmp_path_factory.mktemp("files"), **environment) as platform:
        platform.manage("createsuperuser", "--noinput", "--username", "root", "--email", "root@localhost")
        platform.token("studio", "ada")
        platform.start("chores", [sys.executable, *CHORES])
        platform.server_folder = folder / "old"  # type: ignore[attr-defined]
        yield platform


def open_folder(page: Page, folder: str = "") -> None:  # noqa: F811
    page.goto("/admin/renderjobs/teamfile/browse/")
    page.click("text=studio")
    for part in filter(None, folder.split("/")):
        page.click(f"#folder >> text='{part}/'")


def test_d7_files_are_uploaded_browsed_fetched_and_deleted(platform, page, tmp_path):  # noqa: F811
    files = [tmp_path / name for name in ("ring.png", "notes.txt", "virus.html")]
    files[0].write_bytes(a_png("a red ring"))
    files[1].write_text("twenty steps")
    files[2].write_text("<script>")
    page.goto("/admin/")
    page.click("a:has-text('Files')")
    page.click("text=studio")
    page.fill("#upload [name=folder]", "data/inputs")
    page.set_input_files("#upload [name=files]", files)
    page.click("#upload button")
    rows = page.locator(".rk-upload")
    expect(rows.nth(2).locator(".rk-upload-state")).to_contain_text("are not kept")
    for place in (0, 1):
        expect(rows.nth(place).locator(".rk-upload-state")).to_have_text("is here")
    assert [bar.evaluate("bar => bar.value") for bar in rows.locator("progress").all()[:2]] == [1, 1]
    photograph(page, "files-upload")
    open_folder(page, "data/inputs")
    expect(page.locator(".rk-files li")).to_have_count(2)
    page.click("text=Infotext")
    expect(page.locator(".rk-files pre")).to_contain_text("a red ring")
    photograph(page, "files")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    address = page.locator(".rk-files a:has-text('ring.png')").get_attribute("href")
    assert requests.get(address, timeout=60).content == files[0].read_bytes()  # type: ignore[arg-type]
    with page.expect_download() as download:
        page.click("[aria-label='Download notes.txt']")
    assert download.value.suggested_filename == "notes.txt" and download.value.path().read_text() == "twenty steps"
    page.check("[aria-label='Choose ring.png']")
    page.click("text=Delete chosen files")
    expect(page.locator("form.rk-card")).to_contain_text("data/inputs/ring.png")
    photograph(page, "files-delete")
    page.click("button:has-text('Delete')")
    expect(page.locator(".rk-files li")).to_have_count(1)
    assert requests.get(address, timeout=60).status_code == 404  # type: ignore[arg-type]
    platform.assert_invariants()


def test_an_upload_shows_its_progress_and_a_lost_connection(platform, page, tmp_path):  # noqa: F811
    files = [tmp_path / "long.txt", tmp_path / "lost.txt"]
    files[0].write_bytes(b"a line\n" * 1_500_000)
    files[1].write_text("x")
    seen: list[str] = []
    page.expose_function("seen", lambda text: seen.append(text))
    page.add_init_script(
        "new MutationObserver(() => document.querySelectorAll('.rk-upload-state').forEach(one => seen(one.textContent)))"
        ".observe(document, {childList: true, subtree: true, characterData: true})"
    )
    sent: list[int] = []

    def second_is_lost(route) -> None:
        sent.append(1)
        route.continue_() if len(sent) == 1 else route.abort()

    page.route("**/upload/", second_is_lost)
    open_folder(page)
    page.set_input_files("#upload [name=files]", files)
    page.click("#upload button")
    expect(page.locator(".rk-upload-state").nth(1)).to_contain_text("connection was lost")
    expect(page.locator(".rk-upload-state").nth(0)).to_have_text("is here")
    assert any(text.endswith(" %") for text in seen) and "waits" in seen


def test_d8_a_directory_is_imported_while_its_page_is_watched(platform, page):  # noqa: F811
    root: Path = platform.server_folder / "webui"
    write(root / "outputs/txt2img-images/2023-07-24/00000-1003.png", a_png("an old ring"))
    write(root / "outputs/broken.png", b"no picture")
    (root / "models/Stable-diffusion").mkdir(parents=True)
    shutil.copy(MINIATURE, root / "models/Stable-diffusion/old-rings.safetensors")
    page.goto("/admin/renderjobs/directoryimport/add/")
    page.locator("[name=team]").select_option(label="studio", force=True)
    page.fill("[name=directory]", "/etc")
    page.click("[name=_save]")
    expect(page.locator("body")).to_contain_text("The directory lies outside")
    page.fill("[name=directory]", str(root))
    page.click("[name=_save]")
    expect(page.locator("#import")).to_contain_text("2 of 3 files taken in")
    expect(page.locator("#import")).to_contain_text("outputs/broken.png")
    photograph(page, "import")
    page.click("text=The pictures")
    for part in ("outputs", "txt2img-images", "2023-07-24"):
        page.click(f"#folder >> text='{part}/'")
    page.click("text=Infotext")
    expect(page.locator(".rk-files pre")).to_contain_text("an old ring")
    platform.assert_invariants()


def test_d8_a_model_of_the_zoo_is_fetched_by_one_click(platform, page, models):  # noqa: F811
    # The first connection breaks; the chore that looks for what waits is sent below.
    models.breaks_after[:] = [9_000_000]
    page.goto("/admin/")
    page.click("a:has-text('Model zoo')")
    expect(page.locator("#zoo-far")).to_contain_text("not among those this server fetches from")
    expect(page.locator("#zoo-far")).to_contain_text("models/Stable-diffusion/far.safetensors")
    page.click("#zoo-ring button")
    expect(page.locator("#zoo-ring")).to_contain_text("ended early")
    photograph(page, "zoo")
    platform.manage("shell", "-c", "from assets.tasks import resume_zoo; resume_zoo()")
    expect(page.locator("#zoo-ring")).to_contain_text("Here as zoo-rings.safetensors")  # without a click
    assert models.asked[-1]["Range"] == f"bytes={8 * 1024**2}-"
    platform.assert_invariants()
