"""Publishing for code of one's own: mandatory, persistent, confirmed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypedDict, Unpack

from pydantic import Field

from sidecar.amqp.publisher import ReconnectingPublisher
from sidecar.config.broker import connect_options, topology
from sidecar.config.settings import AmqpSettings, Names
from sidecar.core.wire import properties
from sidecar.library.settings import load_settings
from sidecar.ports import OutboundMessage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Literal

    from sidecar.library.messages import Message

_SHORT = ("content_type", "content_encoding", "correlation_id", "reply_to", "message_id", "type", "app_id")
_PERSISTENT = b"\x02"
_MAX_SHORT_BYTES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message to publish.

    Attributes:
        body: its bytes.
        exchange: empty for the default exchange, where the routing key is a queue's name.
        routing_key: at most 255 bytes, as all the short texts.
        headers: texts, whole numbers, true or false.
        timestamp: in seconds since 1970.
        like: another message, whose properties and headers it has, byte by byte; those given here are left out then.
    """

    body: bytes
    exchange: str = ""
    routing_key: str = ""
    message_id: str | None = None
    correlation_id: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    reply_to: str | None = None
    type: str | None = None
    app_id: str | None = None
    timestamp: int | None = None
    headers: Mapping[str, str | int | bool] = field(default_factory=dict)
    like: Message | None = None

    def copy(self) -> OutboundMessage:
        """Return it as the publisher takes it.

        Raises:
            ValueError: a text is too long, or the timestamp is not a whole number.
        """
        raw = self._properties() if self.like is None else self.like.raw_properties
        return OutboundMessage(
            _short("exchange", self.exchange), _short("routing_key", self.routing_key), raw, self.body, b""
        )

    def _properties(self) -> bytes:
        values = {"delivery_mode": _PERSISTENT}
        for name in _SHORT:
            text = getattr(self, name)
            if text is not None:
                raw = _short(name, text)
                values[name] = bytes([len(raw)]) + raw
        if self.timestamp is not None:
            if not isinstance(self.timestamp, int) or not 0 <= self.timestamp < 1 << 64:
                raise ValueError("the timestamp must be a whole number of seconds since 1970")
            values["timestamp"] = self.timestamp.to_bytes(8, "big")
        if not self.headers:
            return properties.join(values)
        return properties.join_with_headers(
            values, [(_short("a header's name", name), _value(value)) for name, value in self.headers.items()]
        )


def _short(name: str, text: str) -> bytes:
    raw = text.encode()
    if len(raw) > _MAX_SHORT_BYTES:
        raise ValueError(f"{name} has {len(raw)} bytes; AMQP takes {_MAX_SHORT_BYTES}")
    return raw


def _value(value: str | bool | int) -> bytes:  # noqa: FBT001 - a header's value
    if isinstance(value, bool):
        return b"t" + bytes([value])
    return properties.number_value(value) if isinstance(value, int) else properties.text_value(value)


class PublisherSettings(AmqpSettings):
    """What a publisher can be told: how to reach RabbitMQ, and what to declare there."""

    amqp_queue: Names = Field((), description="queues to create where they are absent, and to bind to the exchange")

    def _queue_problems(self) -> list[str]:
        return []


class PublisherOptions(TypedDict, total=False):
    """What can be said in code, by name."""

    amqp_url: str | Sequence[str]
    amqp_queue: str | Sequence[str]
    amqp_declare: Literal["missing", "own", "never"]
    amqp_queue_type: Literal["classic", "quorum"]
    amqp_queue_arguments: Mapping[str, Any]
    amqp_exchange: str
    amqp_exchange_type: str
    amqp_routing_keys: str | Sequence[str]
    amqp_binding_arguments: Mapping[str, Any]
    amqp_ca_file: str
    amqp_cert_file: str
    amqp_key_file: str


class Publisher:
    """Publishes on a connection of its own, which is opened when it is needed and again when it was lost.

    Args:
        prefix: what names in the environment and in ``.env`` begin with; None reads neither.
        options: settings in code, as in `PublisherOptions`; an exchange and queues that are named are created where
            they are absent.

    Raises:
        ConfigError: with every problem.
    """

    def __init__(self, *, prefix: str | None = None, **options: Unpack[PublisherOptions]) -> None:
        self.settings = load_settings(PublisherSettings, prefix, {**options})
        urls = tuple(url.get_secret_value() for url in self.settings.amqp_url)
        self._outlet = ReconnectingPublisher(urls, topology(self.settings), connect_options(self.settings))

    async def publish(self, messages: Iterable[Outgoing]) -> list[str | None]:
        """Publish messages, in order, and wait until each is confirmed. Several calls may be under way.

        Returns:
            For each message None when the broker has it, otherwise why it hasn't: publish it again. (When one comes
            back because no queue takes it, all that are unconfirmed at that moment count as not taken: none is believed
            to be there that isn't.)

        Raises:
            BrokerError: RabbitMQ can't be reached, or was lost: what became of the messages is unknown.
            ValueError: a text is too long, or the timestamp is not a whole number.
        """
        return await self._outlet.publish([message.copy() for message in messages])

    async def close(self) -> None:
        """Close the connection; what is unconfirmed then has an unknown fate."""
        await self._outlet.close()

    async def __aenter__(self) -> Self:
        await self._outlet.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
