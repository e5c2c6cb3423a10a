"""`sidecar.elasticsearch.node`: the pause that an answer asks for, whoever wrote it."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from elastic_transport import HttpHeaders

from sidecar.elasticsearch.node import MAX_RETRY_AFTER_SECONDS, retry_after


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("", 0.0),
        ("soon", 0.0),
        ("nan", 0.0),
        ("inf", MAX_RETRY_AFTER_SECONDS),
        ("999999999999", MAX_RETRY_AFTER_SECONDS),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_SECONDS),
    ],
)
def test_a_pause_is_read_and_bounded(asked: str, seconds: float) -> None:
    """A number of seconds or a date; nothing pauses for ever, and what is neither pauses nothing."""
    assert retry_after(HttpHeaders({"retry-after": asked})) == seconds
    assert retry_after(HttpHeaders({})) == 0.0


def test_a_date_is_so_far_away() -> None:
    """As proxies write it (RFC 9110, 10.2.3)."""
    asked = formatdate(time.time() + 60, usegmt=True)
    assert retry_after(HttpHeaders({"retry-after": asked})) == pytest.approx(60, abs=5)
