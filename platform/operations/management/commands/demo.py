"""`manage.py demo`: starts the platform, renders one batch over HTTP as any client would, shows pictures, cost and bill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from config import ROOT
from operations.launcher import dies_with

BATCH = ROOT / "examples" / "batch.json"
START_SECONDS = 180


class Command(BaseCommand):
    help = __doc__
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        with self.platform() as address:
            api = self.session()
            job = self.rendered(api, address)
            pictures = self.pictures(api, job)
            grid = self.grid(api, job)
            self.bill(api, address)
        cost = job["cost"]
        self.stdout.write(f"demo: {len(pictures)} images, 1 grid, {grid}, {cost['amount']} {cost['currency']}")

    @contextmanager
    def platform(self) -> Iterator[str]:
        """`manage.py serve` in the demo's data directory, stopped at the end whatever happens."""
        self.stdout.write(f"Starting the platform in {settings.DATA_DIR} …")
        command = [sys.executable, str(ROOT / "manage.py"), "serve"]
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=dies_with(os.getpid())
        )
        signal.signal(
            signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
        )  # so that the server is stopped as well
        try:
            yield self.ready_address(server)
        except CommandError:
            self.show_logs()
            raise
        except requests.RequestException as error:
            self.show_logs()
            raise CommandError(f"The platform does not answer: {error}") from error
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)

    def ready_address(self, server: subprocess.Popen[str]) -> str:
        assert server.stdout is not None
        signal.signal(signal.SIGALRM, lambda *_: server.terminate())
        signal.alarm(START_SECONDS)
        for line in server.stdout:
            if line.startswith("ready "):
                signal.alarm(0)
                return line.split()[1]
        raise CommandError("The platform did not start.")

    def session(self) -> requests.Session:
        token = subprocess.check_output(
            [sys.executable, str(ROOT / "manage.py"), "issue_token", "--team", "demo", "--user", "demo"], text=True
        )
        api = requests.Session()
        api.headers["Authorization"] = f"Bearer {token.strip()}"
        return api

    def rendered(self, api: requests.Session, address: str) -> dict[str, Any]:
        """Submit the batch and follow it to its end."""
        body = json.loads(BATCH.read_text())
        self.stdout.write(f"Prompt: {body['request']['prompt']}")
        job = checked(api.post(f"{address}/api/v1/jobs", json=body, timeout=30))
        with tqdm(total=100, mininterval=0.5, bar_format="{l_bar}{bar}| {elapsed}", file=sys.stdout) as bar:
            while job["state"] in ("queued", "running"):
                time.sleep(0.1)
                job = checked(api.get(job["links"]["self"], timeout=30))
                bar.update(round(job["progress"] * 100) - bar.n)
        if job["state"] != "succeeded":
            raise CommandError(f"The job is {job['state']}: {job['error']}")
        return job

    def pictures(self, api: requests.Session, job: dict[str, Any]) -> list[Path]:
        paths = []
        for image in checked(api.get(job["links"]["images"], timeout=30))["results"]:
            paths.append(download(image["url"], f"{image['index']:02d}-{image['seed']}.png"))
            cost = f"{image['cost']['amount']} {image['cost']['currency']}"
            self.stdout.write(f"{paths[-1]}  seed {image['seed']}  {image['gpu_seconds']:.2f} s  {cost}")
        return paths

    def grid(self, api: requests.Session, job: dict[str, Any]) -> Path:
        return download(checked(api.get(job["links"]["grid"], timeout=30))["url"], "grid.png")

    def bill(self, api: requests.Session, address: str) -> None:
        rows = checked(api.get(f"{address}/api/v1/usage", params={"group_by": "team,model"}, timeout=30))["results"]
        self.stdout.write("This month's bill of the team:")
        for row in rows:
            what = f"{row['team']}  {row['model']}  {row['images']} images  {row['gpu_seconds']:.2f} s"
            self.stdout.write(f"  {what}  {row['amount']} {row['currency']}")

    def show_logs(self) -> None:
        for log in sorted((settings.DATA_DIR / "logs").glob("*.log")):
            tail = log.read_text(errors="replace").splitlines()[-15:]
            self.stderr.write(f"--- {log}\n" + "\n".join(tail))


def checked(answer: requests.Response) -> dict[str, Any]:
    """Raises: CommandError: The platform refused, with its own words."""
    if not answer.ok:
        raise CommandError(f"{answer.request.method} {answer.url}: {answer.status_code} {answer.text[:500]}")
    return answer.json()


def download(url: str, name: str) -> Path:
    answer = requests.get(url, timeout=30)
    if not answer.ok:
        raise CommandError(f"GET {url}: {answer.status_code}")
    path = settings.DATA_DIR / "pictures" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(answer.content)
    return path
