"""A client of the queue service as ``requests`` or ``curl`` would be one, for tests without a server."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from django.http import HttpResponse
from django.test import Client

from renderjobs.models import EasService

PROTOBUF = "application/vnd.google.protobuf"


@dataclass
class Calls:
    """One queue's address with a token."""

    path: str
    token: str
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def to(cls, service: EasService, kind: str = "input", **headers: str) -> Calls:
        return cls(f"/api/predict/{service.name}" + ("/sink" if kind == "sink" else ""), service.token.text, headers)

    def call(
        self, method: str, query: dict[str, Any] | None = None, *, path: str = "", body: bytes = b"", **headers: str
    ) -> HttpResponse:
        address = self.path + path + (f"?{urlencode(query)}" if query else "")
        sent = {"Authorization": self.token, **self.headers, **headers}
        return Client().generic(method, address, body, content_type="", headers=sent)

    def put(self, body: bytes = b"{}", *, path: str = "", **query: Any) -> int:
        answer = self.call("POST", query, body=body, path=path)
        assert answer.status_code == 200, answer.content
        return int(answer.content)

    def get(self, **query: Any) -> list[dict[str, Any]]:
        answer = self.call("GET", {"_raw_": "false", **query})
        return [] if answer.status_code == 204 else answer.json()

    def attributes(self) -> dict[str, str]:
        return self.call("GET", {"_attrs_": "true"}).json()

    def length(self) -> int:
        return int(self.attributes()["stream.length"])


def signature(token: str, *, path: str, body: bytes, date: str) -> str:
    """As ``PredictClient`` makes it."""
    lines = ("POST", hashlib.md5(body, usedforsecurity=False).hexdigest(), "application/octet-stream", date, path)
    made = hmac.new(token.encode(), "\n".join(lines).encode(), hashlib.sha1).digest()
    return "EAS " + base64.b64encode(made).decode()
