"""The admin for everybody: WCAG 2.2 AA by axe-core, at the widths of a desk and of a phone, light and dark; the keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zxingcpp
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.flows.conftest import Client, RunningPlatform, chromium_browser, patient_context, running_platform
from tests.services import npm_packages, wait_until

AXE = Path(__file__).parent / "axe"
PASSWORD = "a long password"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
LOOKS = [(width, scheme) for width in (1280, 360) for scheme in ("light", "dark")]
ROWS = """
from tests.admin.pages import *
from tests.factories import *
from accounts.models import *
user, team = User.objects.get(username="ada"), Team.objects.get(name="studio")
a_budget("team", limit="10", team=team, thresholds=((50, "notify"), (100, "block")))
a_schedule(user, team)
an_eas_service("sd-studio", team="studio")
"""
SETTLED = """async () => {
  for (let frame = 0; frame < 3; frame++) {
    await new Promise(requestAnimationFrame);
    for (const one of document.getAnimations())
      if (one.effect.getComputedTiming().endTime !== Infinity) one.finish();
  }
}"""
"""What fades after a change is at its end; on the way colours are between the two."""
PAGES = {
    "dashboard": "/admin/",
    "jobs": "/admin/renderjobs/renderjob/",
    "job": "/admin/renderjobs/renderjob/{job}/change/",
    "image": "/admin/renderjobs/renderjob/{job}/images/0/",
    "gallery": "/admin/renderjobs/renderjob/gallery/",
    "compare": "/admin/renderjobs/renderjob/gallery/compare/?image=1&image=2&image=3",
    "templates": "/admin/renderjobs/batchtemplate/",
    "submit": "/admin/renderjobs/batchtemplate/1/submit/",
    "schedules": "/admin/renderjobs/batchschedule/",
    "schedule": "/admin/renderjobs/batchschedule/1/change/",
    "models": "/admin/assets/asset/",
    "model": "/admin/assets/asset/1/change/",
    "upload": "/admin/assets/asset/add/",
    "services": "/admin/renderjobs/easservice/",
    "costs": "/admin/billing/ledgertransaction/costs/",
    "budgets": "/admin/billing/budget/",
    "budget": "/admin/billing/budget/1/change/",
    "users": "/admin/accounts/user/",
    "user": "/admin/accounts/user/1/change/",
    "token": "/admin/accounts/apitoken/add/",
    "team": "/admin/accounts/team/1/change/",
    "audit log": "/admin/auditlog/logentry/",
    "second factor": "/admin/account/second-factor/new/",
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    environment = {"TEST_RENDERER": "tests.fakes.PatternRenderer", "DJANGO_SUPERUSER_PASSWORD": PASSWORD}
    with running_platform(tmp_path_factory.mktemp("accessible"), **environment) as platform:
        platform.manage("createsuperuser", "--noinput", "--username", "root", "--email", "root@localhost")
        platform.start_worker()
        client = Client(platform)
        job = client.submit(prompt="a red circle", n_iter=3)["id"]
        assert client.wait(job)["state"] == "succeeded"
        platform.manage("shell", "-c", ROWS)
        platform.job = job  # type: ignore[attr-defined]
        yield platform


@pytest.fixture(scope="module")
def axe() -> str:
    return (npm_packages(AXE) / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with chromium_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def signed_in(chromium: Browser, platform: RunningPlatform) -> dict[str, Any]:
    """The state of a browser after signing in, which every other starts from."""
    context = patient_context(chromium, platform)
    page = context.new_page()
    page.goto("/admin/login/")
    page.fill("[name=username]", "root")
    page.fill("[name=password]", PASSWORD)
    page.click("[type=submit]")
    expect(page).to_have_url(f"{platform.address}/admin/")
    state = context.storage_state()
    context.close()
    return state


@pytest.mark.parametrize("name", [*PAGES, "login"])
def test_u2_no_page_breaks_a_rule_overflows_or_leaves_its_policy(chromium, platform, signed_in, axe, name):
    state = None if name == "login" else signed_in
    context = patient_context(chromium, platform, storage_state=state)
    found = problems(context, PAGES.get(name, "/admin/login/").format(job=platform.job), axe)
    context.close()
    assert not found, json.dumps(found, indent=1)


def problems(context: BrowserContext, address: str, axe: str) -> list[str]:
    """What is wrong with a page at any width and in any colours, and what its scripts complain of (the policy among it)."""
    page, lines = context.new_page(), []
    page.on("console", lambda message: lines.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: lines.append(str(error)))
    answer = page.goto(address)
    assert answer and answer.status == 200, (address, answer and answer.status)
    page.evaluate(axe)
    for width, scheme in LOOKS:
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate("scheme => document.documentElement.className = scheme", scheme)  # what unfold's switch does
        page.evaluate(SETTLED)
        lines += [f"{width} {scheme} {line}" for line in looked_at(page)]
    page.close()
    return lines


def looked_at(page: Page) -> list[str]:
    result = page.evaluate("tags => axe.run({runOnly: tags})", WCAG)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return [f"overflows by {wide} px"] * (wide > 0) + [
        f"{one['id']}: {node['target'][0]} {node['failureSummary']}"
        for one in result["violations"]
        for node in one["nodes"]
    ]


def tabs_until(page: Page, wanted: str, *, most: int = 90) -> int:
    """Presses of Tab until the element has the focus, as somebody without a mouse goes."""
    for presses in range(1, most + 1):
        page.keyboard.press("Tab")
        if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
            return presses
    raise AssertionError(f"{wanted} is not reached within {most} presses of Tab")


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        (PAGES["jobs"], "[name=_selected_action]"), (PAGES["jobs"], "#result_list th a"), (PAGES["job"], "#pictures a"),
        (PAGES["upload"], "[name=file]"), (PAGES["upload"], "[name=_save]"), (PAGES["submit"], "[type=submit]"),
        (PAGES["budget"], "[name=_save]"), (PAGES["costs"], ".rk-table a"), (PAGES["dashboard"], ".rk-table a"),
    ],
)  # fmt: skip
def test_u2_the_keyboard_reaches_what_a_page_is_for(chromium, platform, signed_in, address, wanted):
    page = patient_context(chromium, platform, storage_state=signed_in).new_page()
    page.goto(address.format(job=platform.job))
    tabs_until(page, wanted)
    seen = page.evaluate(
        "() => { const style = getComputedStyle(document.activeElement);"
        " return style.outlineStyle !== 'none' || style.boxShadow !== 'none'; }"
    )
    assert seen
    page.context.close()


def test_u3_the_gallery_goes_on_as_it_is_scrolled_and_is_reviewed_by_keys(chromium, platform, signed_in):
    job = Client(platform).submit(prompt="a blue ring", n_iter=70, steps=1)["id"]
    assert Client(platform).wait(job)["state"] == "succeeded"
    page = patient_context(chromium, platform, storage_state=signed_in).new_page()
    page.goto(f"{PAGES['gallery']}?text=blue")
    tiles = page.locator(".rk-tile")
    expect(tiles).to_have_count(60)
    expect(tiles.first.locator("img")).to_have_js_property("naturalWidth", 64)  # small pictures are never enlarged
    page.mouse.wheel(0, 100_000)
    expect(tiles).to_have_count(70)
    page.evaluate("scrollTo(0, 0)")
    tiles.first.locator("a").focus()
    for key in ("4", "r", "c", "ArrowRight", "a", "c"):
        page.keyboard.press(key)
    expect(tiles.nth(0)).to_have_attribute("data-verdict", "rejected")
    expect(tiles.nth(1)).to_have_attribute("data-verdict", "approved")
    expect(tiles.nth(0).locator("[data-rating]")).to_have_value("4")
    page.goto(f"{PAGES['gallery']}?stars=4&verdict=rejected")
    expect(tiles).to_have_count(1)
    page.go_back()
    for place in (0, 1):
        tiles.nth(place).locator("[name=image]").check()
    page.click("#compare button")
    expect(page.locator(".rk-compared img")).to_have_count(2)
    page.context.close()


def test_p13_the_qr_code_is_one_that_a_phone_reads(chromium, platform, signed_in, tmp_path):
    for scheme in ("light", "dark"):
        context = patient_context(chromium, platform, storage_state=signed_in, color_scheme=scheme)
        page = context.new_page()
        page.goto(PAGES["second factor"])
        page.locator(".rk-qr").screenshot(path=tmp_path / "qr.png")
        (code,) = zxingcpp.read_barcodes(Image.open(tmp_path / "qr.png"))
        assert code.text.startswith("otpauth://totp/Renderkiln%3Aroot?secret=" + page.inner_text("code")), scheme
        context.close()


def test_u2_a_person_signs_in_and_cancels_a_job_without_a_mouse(chromium, platform):
    client = Client(platform)
    platform.freeze("worker")  # so that the job has not ended before somebody gets there
    job = client.submit(prompt="a red circle", n_iter=2)["id"]
    page = patient_context(chromium, platform).new_page()
    page.goto("/admin/login/")
    expect(page.locator("[name=username]")).to_be_focused()
    page.keyboard.type("root")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{platform.address}/admin/")
    page.goto("/admin/renderjobs/renderjob/")
    tabs_until(page, f"[name=_selected_action][value='{job}']")
    page.keyboard.press("Space")
    tabs_until(page, "[name=action]")
    page.keyboard.type("Cancel")
    tabs_until(page, "[name=index]")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    wait_until(lambda: client.job(job)["state"] == "cancelled", what="The cancelling")
    page.context.close()
    platform.thaw("worker")
