"""`sidecar.core.message`."""

from __future__ import annotations

from tests.builders import ledger, message, short_string


def test_exchange_and_routing_key_are_read_from_the_raw_route() -> None:
    """The route is two short strings; either may be empty or hold any bytes."""
    for exchange, key in ((b"", b"work"), (b"events", b""), (b"", b""), (b"\xff" * 255, b"\0" * 255)):
        one = message(route=short_string(exchange) + short_string(key))
        assert (one.exchange, one.routing_key) == (exchange, key)


def test_bulk_bytes_are_what_the_request_will_hold() -> None:
    """The size counts the action line, the source and the source's line break."""
    one = message(body=b'{"a":1}')
    one.action_line = b'{"index":{}}\n'
    assert one.bulk_bytes == len(b'{"index":{}}\n{"a":1}\n')


def test_an_action_without_source_takes_its_line_only() -> None:
    """A delete has no source line, so not even a line break is counted for one."""
    one = message()
    one.action_line, one.source = b'{"delete":{"_id":"1"}}\n', None
    assert one.bulk_bytes == len(one.action_line)


def test_the_source_is_the_body_until_composing_says_otherwise() -> None:
    """The body is passed through, not copied."""
    body = b'{"a":1}'
    one = message(body=body)
    assert one.source is body


def test_a_repr_never_quotes_the_document() -> None:
    """Traces and assertion messages go where documents may not."""
    one = message(7, b'{"password":"hunter2"}', of=ledger("orders"))
    assert repr(one) == "<Message orders#7, 22 bytes>"
