"""E1: what the page says of calling a service works when it is pasted, with a real server, worker and the vendor's client."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from renderjobs.compat.eas.calling import ways_of
from tests.eas.conftest import client_python  # noqa: F401
from tests.flows.conftest import ROOT, RunningPlatform, running_platform
from tests.services import PATIENCE_SECONDS, missing

pytestmark = pytest.mark.embedded
LOGIN = """
from accounts.models import User
from django.contrib.auth import login
from django.http import HttpRequest
from importlib import import_module
from django.conf import settings
user = User.objects.create_superuser("root", password="root")
request = HttpRequest()
request.session = import_module(settings.SESSION_ENGINE).SessionStore()
login(request, user)
request.session.save()
print(request.session.session_key)
"""


class Pages:
    """Two services, and what their pages print."""

    def __init__(self, platform: RunningPlatform):
        self.platform = platform
        platform.token("studio")
        self.tokens = {
            name: platform.manage("create_service", name, "--team", "studio", "--edition", edition).split()[-1]
            for name, edition in (("sd_async", "api"), ("sd_plain", "standard"))
        }
        self.session = requests.Session()
        self.session.cookies.set("sessionid", platform.manage("shell", "-v", "0", "-c", LOGIN).split()[-1])
        found = self.session.get(f"{platform.address}/admin/renderjobs/easservice/", timeout=60).text
        self.keys = {name: pk for pk, name in re.findall(r"easservice/(\d+)/change/[^>]*>\s*(sd_\w+)", found)}

    def printed(self, service: str, tab: str, language: str) -> str:
        """The text of a box of the page, as a reader selects it."""
        address = f"{self.platform.address}/admin/renderjobs/easservice/{self.keys[service]}/calling"
        page = self.session.get(address, params={"tab": tab}, timeout=60).text
        (box,) = re.findall(rf'<pre[^>]* id="{language}">(.*?)</pre>', page, re.DOTALL)
        return html.unescape(box)

    def pasted(self, service: str, command: list[str], folder: Path) -> str:
        environment = {**os.environ, "TOKEN": self.tokens[service]}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    folder = tmp_path_factory.mktemp("pasted")
    with running_platform(folder, TEST_RENDERER="tests.fakes.PatternRenderer") as platform:
        platform.start_worker()
        platform.start("requests", [sys.executable, str(ROOT / "manage.py"), "run_eas_requests"])
        pages = Pages(platform)
        platform.await_worker()  # a printed call waits half a minute for its result
        yield pages


@pytest.mark.parametrize("service", ["sd_async", "sd_plain"])
def test_the_synchronous_examples(pages, service, tmp_path):
    if shutil.which("curl") is None:
        missing("curl")
    said = pages.pasted(service, ["bash", "-c", pages.printed(service, "synchronous", "curl")], tmp_path)
    assert said.startswith('{"images": ["')
    pages.pasted(service, [sys.executable, "-c", pages.printed(service, "synchronous", "python")], tmp_path)
    assert (tmp_path / "picture-0.png").read_bytes().startswith(b"\x89PNG")


def test_the_asynchronous_examples(pages, client_python, tmp_path):  # noqa: F811
    if shutil.which("curl") is None:
        missing("curl")
    said = pages.pasted("sd_async", ["bash", "-c", pages.printed("sd_async", "asynchronous", "curl")], tmp_path)
    assert said.startswith('1[{"index": 1, "tags": {"task_id": "job_001"')
    program = pages.printed("sd_async", "asynchronous", "python")
    said = pages.pasted("sd_async", [str(client_python), "-c", program], tmp_path)
    assert re.search(r"^job_001 \d+ bytes$", said, re.MULTILINE)


def test_behind_https_the_vendors_client_is_given_whole_addresses(pages, client_python, tmp_path):  # noqa: F811
    host = pages.platform.address.removeprefix("http://")
    *_, way = ways_of("sd_async", is_asynchronous=True, host=host, scheme="https")
    assert way.python.count(f'init(custom_url="https://{host}/api/predict/sd_async/') == 2
    program = way.python.replace("https://", "http://")  # there is no certificate here
    assert re.search(
        r"^job_001 \d+ bytes$", pages.pasted("sd_async", [str(client_python), "-c", program], tmp_path), re.M
    )
