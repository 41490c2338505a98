"""A server of models on loopback that speaks as the large ones do, and fails where a test wants it to."""

from __future__ import annotations

import ipaddress
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SERVED = "127.0.0.3"


@dataclass
class ModelServer:
    data: bytes = b""
    port: int = 0
    tag: str = '"one"'
    ranges: bool = True
    breaks_after: list[int] = field(default_factory=list)
    """Of the next answers: the connection is cut after so many bytes."""
    redirects_to: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://{SERVED}:{self.port}/model.safetensors"

    def allow(self, settings: Any) -> None:
        settings.FETCH_HOSTS = ["*"]
        settings.FETCH_PORTS = [self.port]
        settings.FETCH_PRIVATE_NETWORKS = [ipaddress.ip_network(f"{SERVED}/32")]

    def offer(self, settings: Any, folder: Path, **changes: Any) -> None:
        """Make it the zoo's only model, under the key ``ring``."""
        entry = {
            "key": "ring", "title": "Rings", "kind": "checkpoint", "family": "sd1", "filename": "rings.safetensors",
            "url": self.address, "page": "https://example.com/rings", "licence": "MIT", "size_bytes": None, "sha256": "",
            "hints": "20 steps", "prompt": "a ring", **changes,
        }  # fmt: skip
        path = folder / f"zoo-{len(list(folder.iterdir()))}.json"
        path.write_text(json.dumps([entry]))
        settings.ZOO_LIST = path


@contextmanager
def model_server() -> Iterator[ModelServer]:
    models = ModelServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """All that the test dictated is taken before anything is answered: the next request may come in the same moment."""
            models.asked.append(dict(self.headers))
            redirects_to, models.redirects_to = models.redirects_to, ""
            if redirects_to:
                self.send_response(302)
                self.send_header("Location", redirects_to)
                self.end_headers()
                return
            first = self._first()
            most = models.breaks_after.pop(0) if models.breaks_after else len(models.data)
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(models.data) - 1}/{len(models.data)}")
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(len(models.data) - first))
            self.send_header("ETag", models.tag)
            self.end_headers()
            self.wfile.write(models.data[first:][:most])

        def _first(self) -> int:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            same = self.headers.get("If-Range", models.tag) == models.tag
            return int(wanted[1]) if wanted and same and models.ranges else 0

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((SERVED, 0), Handler)
    server.daemon_threads = True
    models.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield models
    server.shutdown()
    thread.join()
    server.server_close()
