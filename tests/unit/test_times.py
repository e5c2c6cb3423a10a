"""`sidecar.core.timestamps`: every common way to write a time is read, and nothing else is taken for one."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core import timestamps
from sidecar.core.encoding.exact_json import Number
from sidecar.core.wire.properties import published_at
from tests.builders import properties
from tests.drawing import drew

if TYPE_CHECKING:
    from collections.abc import Iterator

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
SECONDS = int(NOON.timestamp())


@pytest.mark.parametrize(
    "value",
    ["2026-11-30T12:00:00Z", "2026-11-30T14:00:00+02:00", "2026-11-30T14:00:00+0200", "2026-11-30T12:00:00",
     "2026-11-30 12:00:00", "2026-11-30T12:00", "20261130T120000Z", "2026-11-30t12:00:00z", b"2026-11-30T12:00:00.000Z",
     "2026-11-30T12:00:00.000000000Z", "2026-11-30T12:00:00,000Z", " 2026-11-30T12:00:00Z ",
     SECONDS, SECONDS * 10**3, SECONDS * 10**6, SECONDS * 10**9, float(SECONDS), float(SECONDS * 1000),
     str(SECONDS), str(SECONDS * 10**3), str(SECONDS * 10**6), str(SECONDS * 10**9), f"{SECONDS}.0", f"{SECONDS}e3",
     Number(f"{SECONDS}.00")],
)  # fmt: skip
def test_a_time_is_read(value: object) -> None:
    """ISO 8601 in any zone, and numbers since 1970, whose unit their size tells."""
    assert timestamps.read(value) == NOON


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-11-30", datetime(2026, 11, 30, tzinfo=UTC)),
        ("20261130", datetime(2026, 11, 30, tzinfo=UTC)),
        ("2026-11", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026", datetime(2026, 1, 1, tzinfo=UTC)),
        (20261130, datetime(1970, 8, 23, 12, 5, 30, tzinfo=UTC)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("2026-11-30T12:00:00.123456789Z", NOON + timedelta(microseconds=123456)),
        (SECONDS * 10**9 + 123456789, NOON + timedelta(microseconds=123456)),
        (f"{SECONDS}.123456", NOON + timedelta(microseconds=123456)),
        (SECONDS + 0.25, NOON + timedelta(milliseconds=250)),
        ("2026-12-01T00:30:00+02:00", datetime(2026, 11, 30, 22, 30, tzinfo=UTC)),
    ],
)
def test_what_a_time_says_is_exact(value: object, moment: datetime) -> None:
    """Days are those of UTC; a text of eight digits, or of four, is a date."""
    assert timestamps.read(value) == moment


@pytest.mark.parametrize(
    "value",
    [None, True, False, "", " ", "soon", "2026-13-01", "2026-11-30T25:00:00Z", "12:00", "x" * 10**6, "9" * 30, 10**20,
     1e20, float("nan"), float("inf"), "nan", "1e99", "９９９９９９９９９", [SECONDS], {"a": 1}, b"\xff",  # noqa: RUF001
     "9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+05:00"],
)  # fmt: skip
def test_what_is_no_time_is_none(value: object) -> None:
    """It must never become a date of some other day."""
    assert timestamps.read(value) is None


@pytest.mark.draws(
    "seconds", "milliseconds", "microseconds", "nanoseconds", "east", "west", "another day there", "before 2001",
)  # fmt: skip
@given(st.datetimes(datetime(1974, 1, 1), datetime(2500, 1, 1)), st.sampled_from([0, 3, 6, 9]), st.integers(-840, 840))  # noqa: DTZ001
def test_every_spelling_of_a_time_is_the_same_time(moment: datetime, digits: int, minutes: int) -> None:
    """Seconds, milliseconds, microseconds, nanoseconds, as number and text, and ISO 8601 in any zone."""
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    drew({0: "seconds", 3: "milliseconds", 6: "microseconds", 9: "nanoseconds"}[digits])
    drew("east" if minutes > 0 else "west", minutes)
    drew("another day there", (moment + timedelta(minutes=minutes)).day != moment.day)
    drew("before 2001", moment.year < 2001)
    number = int(moment.timestamp()) * 10**digits
    assert timestamps.read(number) == timestamps.read(str(number)) == moment
    assert timestamps.read(moment.astimezone(timezone(timedelta(minutes=minutes))).isoformat()) == moment
    assert timestamps.read(timestamps.as_text(moment)) == moment


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_when_a_message_was_published_is_told_in_any_unit(unit: int) -> None:
    """Metrics and spans measure from it."""
    assert published_at(properties(timestamp=SECONDS * unit), SECONDS + 5.0) == SECONDS
    assert published_at(properties(timestamp=2**64 - 1), SECONDS + 5.0) is None


@pytest.fixture
def auckland(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's zone is far from UTC."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "Pacific/Auckland")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("auckland")
def test_the_machines_zone_means_nothing() -> None:
    """A time without a zone is UTC, also where the machine is elsewhere."""
    assert timestamps.read("2026-11-30T12:00:00") == NOON


@pytest.mark.parametrize(
    ("style", "expected"),
    [("%Y.%m.%d", "0001.01.01"), ("%F", "0001-01-01"), ("%G-%V", "0001-01"), ("%%Y-%Y", "%Y-0001"), ("%d%%", "01%")],
)
def test_a_year_has_four_digits(style: str, expected: str) -> None:
    """Year 1 is what Go and .NET write for a time that is not set; C libraries differ in how they write it."""
    assert timestamps.as_text(datetime(1, 1, 1, tzinfo=UTC), style) == expected


@pytest.mark.usefixtures("auckland")
def test_seconds_since_1970_are_written_as_they_are() -> None:
    """Whatever the machine's zone."""
    assert timestamps.as_text(datetime(1970, 1, 2, tzinfo=UTC), "%s-%Y") == "86400-1970"
