"""A call of this door that the platform makes itself, for a caller it knows already: a queued request, a service's address.

Nothing a client sends can make one; the views take the caller from it instead of the header.
"""

from __future__ import annotations

from django.http import HttpRequest, QueryDict

from accounts.authentication import Caller
from renderjobs.choices import Lane
from renderjobs.models.jobs import Source


class InsideRequest(HttpRequest):
    def __init__(
        self,
        *,
        path: str,
        body: bytes,
        caller: Caller,
        method: str = "POST",
        query: str = "",
        idempotency_key: str = "",
        source: str = Source.EAS,
        lane: int = Lane.INTERACTIVE,
    ):
        super().__init__()
        self.method, self.path, self.path_info = method, path, path
        self._body = body
        self.GET = QueryDict(query)
        self.META = {"QUERY_STRING": query, "CONTENT_LENGTH": str(len(body))}
        if idempotency_key:
            self.META["HTTP_IDEMPOTENCY_KEY"] = idempotency_key
        self.caller, self.source, self.lane = caller, source, lane
