"""The calendar of the bill: months in UTC, from their first moment to the next one's."""

from __future__ import annotations

from datetime import UTC, datetime

from common.errors import FieldError, InvalidRequestError


def month_bounds(text: str) -> tuple[datetime, datetime]:
    """The month's first moment and the next month's, UTC.

    Raises:
        InvalidRequestError: Not a month.
    """
    try:
        start = datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
        return start, (start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1))
    except ValueError as error:
        raise InvalidRequestError([FieldError("month", f"month is {text[:80]!r}; accepted is YYYY-MM.")]) from error
