"""What the documents point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [path for part in ("*.md", "docs/**/*.md", "miniature/*.md") for path in sorted(ROOT.glob(part))]
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(document):
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), target


def test_every_file_that_a_document_names_by_its_path_exists():
    named = re.compile(r"`((?:tests|platform|renderjobs|gpuworker|docs|examples|benchmarks)/[\w./-]+\.\w+)`")
    for document in DOCUMENTS:
        for path in named.findall(document.read_text()):
            assert (ROOT / path).exists(), f"{document.name} names {path}"
