"""Reads times in all common formats, and writes them in UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = ((10**11, 1), (10**14, 10**3), (10**17, 10**6), (10**20, 10**9))
"""Upper limits for numbers of seconds, milliseconds, microseconds and nanoseconds since 1970.

Each limit is the year 5138 in its own unit, and 1973 in the next, so present times are unambiguous.
"""
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?")
_BRIEF = re.compile(r"([0-9]{4})(?:-([0-9]{2}))?")
_DIRECTIVE = re.compile(r"%(.)", re.DOTALL)
_YEAR_OF_FOUR_DIGITS = 1000
_BASIC_DATE_CHARACTERS = 8
_MAX_CHARACTERS = 64


def since_epoch(number: float | Decimal) -> datetime | None:
    """Return the time of a number since 1970, whose magnitude decides its unit; None if there is no such time.

    Args:
        number: of seconds, milliseconds, microseconds or nanoseconds.
    """
    magnitude: Any = abs(number)
    unit = next((unit for limit, unit in _UNITS if magnitude < limit), None)  # none for NaN
    if unit is None:
        return None
    scaled = number * 1_000_000
    microseconds = round(scaled / unit) if isinstance(number, float) else int(scaled // unit)
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return None


def read(value: object) -> datetime | None:
    """Return the time of a value; None if it is not a time.

    Args:
        value: a text in ISO 8601 (UTC if there is no zone; midnight if there is only a date), or a number since 1970
            (see `since_epoch`), also as a text.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return since_epoch(value)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if not isinstance(value, str) or len(value) > _MAX_CHARACTERS:
        return None
    return _of_text(value.strip())


def _of_text(text: str) -> datetime | None:
    if brief := _BRIEF.fullmatch(text):
        text = f"{brief[1]}-{brief[2] or '01'}-01"
    elif len(text) != _BASIC_DATE_CHARACTERS and _NUMBER.fullmatch(text):
        try:
            return since_epoch(Decimal(text))
        except InvalidOperation:
            return None
    try:
        moment = datetime.fromisoformat(text.upper())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def iso(seconds: float) -> str:
    """Return a time in ISO 8601, UTC, with milliseconds.

    Args:
        seconds: since 1970.

    Raises:
        ValueError, OverflowError, OSError: it is outside of the years 1 to 9999.
    """
    return as_text(datetime.fromtimestamp(seconds, UTC))


def as_text(moment: datetime, format_: str = "") -> str:
    """Return a time of UTC as a text.

    Args:
        moment: the time.
        format_: as for ``strftime``; empty: ISO 8601 with milliseconds.
    """
    if format_:
        differs = moment.year < _YEAR_OF_FOUR_DIGITS or "%s" in format_
        return moment.strftime(_filled(format_, moment) if differs else format_)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _filled(style: str, moment: datetime) -> str:
    """Return a style with what C libraries write in other ways filled in.

    Some write year 1 as ``1``, and seconds since 1970 are counted by the machine's zone.
    """
    year, week_year = f"{moment.year:04}", f"{moment.isocalendar().year:04}"
    filled = {"Y": year, "F": f"{year}-%m-%d", "G": week_year, "s": str(int(moment.timestamp()))}
    return _DIRECTIVE.sub(lambda match: filled.get(match[1], match[0]), style)
