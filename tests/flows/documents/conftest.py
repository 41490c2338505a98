"""One running platform for the programs and requests that the users' documents print, with everything installed that they name.

What a test changes in a program is its endpoint, its token, the bucket, and the host of pictures that lie in a bucket.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image, ImageDraw

from tests.eas.conftest import client_python  # noqa: F401
from tests.flows.conftest import ROOT, RunningPlatform, running_platform
from tests.services import PATIENCE_SECONDS, missing, wait_until

HERE = Path(__file__).parent
MINIATURE = ROOT / "miniature"
PICTURES_HOST = "127.0.0.2"
NAMED = {
    "deliberate_v2": ("checkpoint", "renderkiln-miniature"),
    "v1-5-pruned-emaonly": ("checkpoint", "renderkiln-miniature"),
    "anythingv5nijimix_25BEST": ("checkpoint", "renderkiln-miniature"),
    "yaeMikoRealistic_Genshin": ("lora", "miniature-moonlight"),
    "20240320-1710939437372": ("lora", "miniature-moonlight"),
    "control_v11p_sd15_canny": ("controlnet", "miniature-canny"),
}
"""Models of the documents → kind and the miniature that plays it."""


SETUP = """
from django.core.management import call_command
from accounts.models import Team
from assets.models import Asset
for file, kind in {files!r}.items():
    call_command("import_asset", file, kind=kind, public=True, stdout=open("/dev/null", "w"))
call_command("issue_token", team="studio", user="ada")
call_command("create_service", "sd_async", team="studio")
Asset.objects.filter(name="anythingv5nijimix_25BEST").update(listed_hash="8bc735ed57")
print(Team.objects.get(name="studio").pk)
"""
"""One process instead of one for each command."""


class Documented:
    """What a reader of the documents has: an endpoint, a token, a bucket."""

    def __init__(self, platform: RunningPlatform, pictures: str) -> None:
        self.platform, self.pictures = platform, pictures
        files = {
            str(renamed(MINIATURE / f"{source}.safetensors", platform.data_dir / f"{name}.safetensors")): kind
            for name, (kind, source) in NAMED.items()
        }
        said = platform.manage("shell", "-v", "0", "-c", SETUP.format(files=files))
        self.token, self.queue_token, team = said.split()[-3:]
        self.bucket = platform.data_dir / "examplebucket"
        self.bucket.mkdir()
        for mounted in ("data-oss", "aohai-singapore"):
            (self.bucket / mounted).symlink_to(platform.data_dir / "media" / "pictures" / team / "files" / "data")

    @property
    def url(self) -> str:
        return self.platform.address

    @property
    def queue_url(self) -> str:
        return f"{self.platform.address}/api/predict/sd_async"

    def run(self, program: str, changes: Mapping[str, str], folder: Path) -> str:
        """Run a Python program in a folder of its own and return what it prints."""
        return self._run([sys.executable, "-c", changed(program, changes)], folder)

    def shell(self, program: str, changes: Mapping[str, str], folder: Path) -> str:
        if shutil.which("curl") is None:
            missing("curl")
        return self._run(["bash", "-c", changed(program, changes)], folder)

    def _run(self, command: list[str], folder: Path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(HERE), "OSS_ROOT": str(self.bucket), "PYTHONIOENCODING": "utf-8"}
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def listen(
        self, python: Path, program: str, changes: Mapping[str, str], folder: Path, *, until: Callable[[str], bool]
    ) -> str:
        """Run a program of the vendor's queue client, which never ends, until it has printed enough."""
        environment = {**os.environ, "PYTHONPATH": str(HERE), "OSS_ROOT": str(self.bucket), "PYTHONUNBUFFERED": "1"}
        said, errors = folder / "said", folder / "errors"
        with said.open("wb") as out, errors.open("wb") as error:
            process = subprocess.Popen(
                [str(python), "-c", changed(program, changes)], cwd=folder, env=environment, stdout=out, stderr=error
            )
            try:
                wait_until(lambda: until(whole_lines(said)), what="The printed results")
            except AssertionError as late:
                raise AssertionError(f"{late}\n{whole_lines(said)}\n{errors.read_text()}") from late
            finally:
                process.kill()
                process.wait()
        return whole_lines(said)

    def request(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = requests.post(
            f"{self.url}{path}", json=body, headers={"Authorization": self.token}, timeout=PATIENCE_SECONDS
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def queued_result(self, id_task: str) -> dict[str, Any]:
        """What the sink queue has for the request of this id; it stays there."""
        query = {"_index_": 0, "_length_": 1000, "_raw_": "false", "_auto_delete_": "false"}

        def found() -> list[dict[str, Any]]:
            headers = {"Authorization": self.queue_token}
            answer = requests.get(f"{self.queue_url}/sink", params=query, headers=headers, timeout=60)
            frames = answer.json() if answer.status_code == 200 else []
            results = [json.loads(base64.b64decode(frame["data"])) for frame in frames]
            return [result for result in results if result["parameters"]["id_task"] == id_task]

        wait_until(found, what=f"A result for {id_task}")
        return found()[0]

    def objects(self, answer: Mapping[str, Any], mount: str) -> list[Path]:
        """The objects behind the paths of an answer, as the documents' programs find them in the bucket."""
        paths = answer["parameters"]["image_url"].split(",")
        return [Path(path.replace(mount, str(self.bucket / "data-oss"))) for path in paths]


def whole_lines(file: Path) -> str:
    """What a program has printed so far, without a line that it is at."""
    data = file.read_bytes()
    return data[: data.rfind(b"\n") + 1].decode()


def changed(text: str, changes: Mapping[str, str]) -> str:
    """The program with its placeholders filled in; one that is not there is a mistake of the test."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def body_of(text: str, changes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A printed request without its remarks, which JSON has not."""
    plain = re.sub(r"\s*(?<!\")#.*$", "", changed(text, changes or {}), flags=re.MULTILINE)
    return json.loads(re.sub(r",(\s*})", r"\1", plain))


def renamed(source: Path, target: Path) -> Path:
    """A copy whose header says its name, so that no two of them have one hash."""
    data = source.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = {**header.get("__metadata__", {}), "plays": target.stem}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return target


class Pictures(BaseHTTPRequestHandler):
    """The bucket with the pictures that the documents' requests name."""

    def do_GET(self) -> None:
        picture = Image.new("RGB", (96, 64), "white")
        ImageDraw.Draw(picture).ellipse((20, 10, 70, 55), fill="navy")
        file = io.BytesIO()
        picture.save(file, "JPEG" if self.path.endswith(".jpg") else "PNG")
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        self.wfile.write(file.getvalue())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def pictures() -> Iterator[str]:
    server = ThreadingHTTPServer((PICTURES_HOST, 0), Pictures)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://{PICTURES_HOST}:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def documented(tmp_path_factory: pytest.TempPathFactory, pictures: str) -> Iterator[Documented]:
    folder = tmp_path_factory.mktemp("documents")
    # The pictures of the documents are large: a renderer of patterns makes them in no time. The engine draws in test_pictures.
    environment = {
        "TEST_RENDERER": "tests.fakes.PatternRenderer",
        "FETCH_HOSTS": "*",
        "FETCH_PRIVATE_NETWORKS": f"{PICTURES_HOST}/32",
        "FETCH_PORTS": pictures.rpartition(":")[2],
    }
    with running_platform(folder, **environment) as platform:
        documented = Documented(platform, pictures)
        platform.start_worker()
        platform.start("requests", [sys.executable, str(ROOT / "manage.py"), "run_eas_requests"])
        yield documented
