"""The page on which an OpenAPI document is read, its script apart so that the page needs no inline one."""

from __future__ import annotations

from drf_spectacular.views import SpectacularSwaggerSplitView


class DocumentPage(SpectacularSwaggerSplitView):
    http_method_names = ["get", "head"]  # of every other the page would have no template
