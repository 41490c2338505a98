"""The column type of every amount: decimal to six places."""

from __future__ import annotations

from typing import Any

MONEY: dict[str, Any] = {"max_digits": 18, "decimal_places": 6}
