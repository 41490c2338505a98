"""The column type of every amount: decimal to six places, and how large amounts may be."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

MONEY: dict[str, Any] = {"max_digits": 18, "decimal_places": 6}
MOST_AMOUNT = Decimal("99_999_999_999")
"""Of a budget's limit, a job, or what is spent and held of a budget; the columns have one digit more."""
MOST_PRICE = Decimal("10_000")
"""Of a GPU-second or a megapixel-step: with it a day of a thousand idle workers fits the columns."""
MOST_PRICE_OF_INSTANCES = Decimal("1_000_000")
"""Of an instance and hour."""
