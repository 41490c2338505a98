"""uvicorn's WebSocket protocol, which also tells the application when the client was last heard of.

ASGI does not show pings, and pings are all that a watcher sends. Chosen by ``--ws``; the only module that knows uvicorn.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from renderjobs.compat.eas.wire import HEARD


class HeardProtocol(WebSocketsSansIOProtocol):
    heard_at = 0.0

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.loop.time()
        super().data_received(data)

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        # The application begins in the next turn of the loop, so it finds this in its scope.
        if hasattr(self, "scope"):
            extensions: dict[str, Any] = self.scope["extensions"]  # type: ignore[assignment]
            extensions[HEARD] = lambda: self.loop.time() - self.heard_at
