"""Tests that need a card: ``pytest -m gpu tests/gpu``. Without one they fail; they are never skipped.

``GPU_TESTS_DEVICE=cpu`` runs the same lines on the CPU, to try the tests themselves.
"""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    wanted = os.environ.get("GPU_TESTS_DEVICE", "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.fail("These tests need a card, and torch sees none.")
    return wanted
