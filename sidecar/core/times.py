"""Moments as people and programs write them."""

from __future__ import annotations

from datetime import UTC, datetime


def iso(seconds: float) -> str:
    """Return a moment in ISO 8601, UTC, with milliseconds.

    Args:
        seconds: since 1970.

    Raises:
        ValueError, OverflowError, OSError: it is outside of the years 1 to 9999.
    """
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
