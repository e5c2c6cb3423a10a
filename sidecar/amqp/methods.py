"""Turns off the name checks of pamqp, which encodes and decodes AMQP methods for aiormq.

pamqp checks names against the grammar of AMQP 0-9-1 (ASCII letters, digits and a few marks; at most 127 characters for
an exchange) and raises ValueError. RabbitMQ accepts any UTF-8 of at most 255 bytes, and answers if it rejects a name.
Names that can't be encoded at all are rejected with the settings (`sidecar.core.wire.names`).

RabbitMQ cuts its reasons at 255 bytes, which may be inside a character; such a reason is decoded as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pamqp import commands, decode

if TYPE_CHECKING:
    from pamqp.base import Frame

_WITH_NAMES: tuple[type[Frame], ...] = (
    commands.Connection.Open,
    commands.Exchange.Declare,
    commands.Exchange.Delete,
    commands.Exchange.Bind,
    commands.Exchange.Unbind,
    commands.Queue.Declare,
    commands.Queue.Bind,
    commands.Queue.Unbind,
    commands.Queue.Purge,
    commands.Queue.Delete,
    commands.Basic.Consume,
    commands.Basic.Publish,
    commands.Basic.Return,
    commands.Basic.Deliver,
    commands.Basic.Get,
    commands.Basic.GetOk,
)


def leave_names_to_the_broker() -> None:
    """Make pamqp encode and decode every name; once for the process."""
    for method in _WITH_NAMES:
        method.validate = _accept  # type: ignore[assignment, method-assign]
    decode.METHODS["shortstr"] = _short_string


def _accept(_: Frame) -> None:
    """Accept the names of a method."""


def _short_string(data: bytes) -> tuple[int, str]:
    """Return the encoded size of a short string, and the string."""
    if not data:
        raise ValueError("a short string is missing")
    end = 1 + data[0]
    return end, data[1:end].decode(errors="replace")
