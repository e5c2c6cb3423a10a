"""Bugs that are planted into what forwards, for days of forwarding to find; as `tests.simulation.mutants`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import sidecar.amqp.publisher
import sidecar.sinks.amqp
from sidecar.amqp.confirms import ConfirmChannel, Pending
from sidecar.amqp.connection import AmqpProtocol
from sidecar.amqp.publisher import ReconnectingPublisher
from sidecar.amqp.publisher_connection import PublisherConnection
from sidecar.core.encoding import forward
from sidecar.core.encoding.forward import ForwardEncoder, ForwardProperties
from sidecar.core.wire import frames, republish
from sidecar.sinks.amqp import Publishes, Routes
from tests.simulation.mutants import Planted, planting

if TYPE_CHECKING:
    from sidecar.core.encoding.template import TemplateContext
    from sidecar.core.message import Message
    from sidecar.core.results.bulk import Result
    from sidecar.core.scheduling.batcher import Batch
    from sidecar.core.wire.frames import Confirm, Returned

PLANTED: dict[str, Planted] = {}
_planted = planting(PLANTED)

# Verdicts ------------------------------------------------------------------------------------------------------------


@_planted("verdict", (Publishes, "_publish"))
async def _too_large_shifts_verdicts(self: Publishes, batch: Batch) -> list[str | Result | None]:
    """One message too large for a frame shifts the verdicts of its batch."""
    all_of_them = [self._copy(message) for message in batch.messages]
    most = frames.properties_limit(self._outlet.frame_max)
    fitting = [copy for copy in all_of_them if len(copy.properties) <= most]
    refusals = cast("list[str | Result | None]", await self._outlet.publish(fitting) if fitting else [])
    large = [copy for copy in all_of_them if len(copy.properties) > most]
    return [*refusals, *(sidecar.sinks.amqp._too_large(copy, most) for copy in large)]


@_planted("verdict", (sidecar.sinks.amqp, "properties_limit"))
def _the_limit_is_the_frames(frame_max: int) -> int:
    """The whole frame counts as room for properties."""
    return frame_max


@_planted("verdict", (sidecar.sinks.amqp, "_result"))
def _unroutable_is_a_nack(refusal: str | Result | None) -> Result:
    """What no queue takes is retried as what a full queue refuses, and what is refused goes the same way."""
    return _result(str(refusal) if isinstance(refusal, str) else refusal)


_result = sidecar.sinks.amqp._result


@_planted("verdict", (sidecar.sinks.amqp, "_result"))
def _refused_is_confirmed(refusal: str | Result | None) -> Result:
    """A nack counts as a confirm, if there is anything else in its batch that counts otherwise."""
    return sidecar.sinks.amqp._CONFIRMED if type(refusal) is str else _result(refusal)


# Confirms ------------------------------------------------------------------------------------------------------------


_note_confirm = ConfirmChannel._note_confirm


@_planted("confirm", (ConfirmChannel, "_note_confirm"))
def _multiple_is_single(self: ConfirmChannel, confirm: Confirm) -> None:
    """A multiple confirm is taken for one of its last tag only."""
    _note_confirm(self, confirm._replace(multiple=False))


@_planted("confirm", (ConfirmChannel, "_note_confirm"))
def _every_confirm_is_multiple(self: ConfirmChannel, confirm: Confirm) -> None:
    """A confirm covers all before it."""
    _note_confirm(self, confirm._replace(multiple=True))


@_planted("confirm", (ConfirmChannel, "_note_confirm"))
def _nacks_are_confirms(self: ConfirmChannel, confirm: Confirm) -> None:
    """A nack is taken for an ack."""
    _note_confirm(self, confirm._replace(positive=True))


@_planted("confirm", (ConfirmChannel, "_note_confirm"))
def _tokens_are_kept(self: ConfirmChannel, confirm: Confirm) -> None:
    """A token is never freed."""
    tokens = set(self._tokens)
    _note_confirm(self, confirm)
    self._tokens |= tokens


@_planted("confirm", (ConfirmChannel, "_note_return"))
def _returns_are_forgotten(self: ConfirmChannel, returned: Returned) -> None:
    """The confirm that follows a return counts as one."""


@_planted("confirm", (ConfirmChannel, "_note_return"))
def _a_return_is_for_the_first(self: ConfirmChannel, returned: Returned) -> None:
    """A return is told of the oldest message that is unconfirmed."""
    for tag, pending in self._open.items():
        pending.refusals[tag - pending.first_tag] = sidecar.amqp.confirms.Unroutable(returned.text)
        return


_write = ConfirmChannel._write


@_planted("confirm", (ConfirmChannel, "_write"))
async def _open_when_all_is_written(self: ConfirmChannel, pending: Pending) -> None:
    """A confirm that comes while the socket drains is dropped."""
    opened, self._open = self._open, {}
    await _write(self, pending)
    self._open = {**opened, **self._open}


@_planted("confirm", (ConfirmChannel, "set_blocked"))
def _time_goes_on_in_an_alarm(self: ConfirmChannel, reason: str | None) -> None:
    """The time for confirms doesn't stand still while the broker takes nothing."""
    (self._unblocked.set if reason is None else self._unblocked.clear)()


@_planted("confirm", (ConfirmChannel, "fail_pending"))
def _lost_is_confirmed(self: ConfirmChannel, reason: str) -> None:
    """What was open when the connection was lost counts as confirmed."""
    self._lost = reason
    self._unblocked.set()
    for pending in dict.fromkeys(self._open.values()):
        if not pending.done.done():
            pending.done.set_result(None)
    self._open.clear()


# Connections ---------------------------------------------------------------------------------------------------------


@_planted("connection", (ReconnectingPublisher, "_drop"))
async def _blocked_is_kept(self: ReconnectingPublisher, producer: PublisherConnection) -> None:
    """The next connection counts as blocked, because the last one was."""
    if self._publisher is producer:
        self._publisher = None
    await producer.close()


@_planted("connection", (ReconnectingPublisher, "_drop"))
async def _lost_ones_are_left_open(self: ReconnectingPublisher, producer: PublisherConnection) -> None:
    """A connection that isn't used any more isn't closed."""
    if self._publisher is producer:
        self._publisher = None
        self.blocked = None


@_planted("connection", (PublisherConnection, "_on_lost"))
def _lost_unnoticed(self: PublisherConnection, reason: str) -> None:
    """A connection that was lost with nothing on its way is used on."""
    if self._channel is not None:
        self._channel.fail_pending(reason)


@_planted("connection", (AmqpProtocol, "data_received"))
def _the_first_confirm_only(self: AmqpProtocol, data: bytes) -> None:
    """Of confirms that come together only the first is noted."""
    taken = self.parser.feed(data)
    if taken.passthrough:
        self._look_at_passed(taken.passthrough)
        asyncio.StreamReaderProtocol.data_received(self, taken.passthrough)
    if taken.answers:
        self._on_frames(taken._replace(answers=taken.answers[:1]))


# Young queues --------------------------------------------------------------------------------------------------------


@_planted("young", (Routes, "old_enough"))
async def _believes_at_once(self: Routes, messages: list[Message], refusals: list[str | Result | None]) -> bool:
    """What a queue confirms that has just appeared is acked at once."""
    return False


_old_enough = Routes.old_enough


@_planted("young", (Routes, "old_enough"))
async def _believes_whatever_happens(self: Routes, messages: list[Message], refusals: list[Any]) -> bool:
    """That the connection is lost while it waits for a queue to be safe is no reason to publish again."""
    await _old_enough(self, messages, refusals)
    return False


@_planted("young", (Routes, "_latest"))
def _the_first_only(self: Routes, messages: list[Message], refusals: list[Any], now: float) -> float:
    """Only before the very first publish may a queue have just been made."""
    return 0.0


# What is passed on ---------------------------------------------------------------------------------------------------


@_planted("content", (forward, "_of_json"))
def _still_says_gzip(raw: bytes) -> bytes:
    """A body that was unpacked still says how it was packed."""
    return raw


def _constant(area: str, name: str, breaks: str, attribute: str, value: object) -> None:
    """Note another value of a constant as a bug."""
    PLANTED[name] = Planted(name, area, breaks, ((forward, attribute, value),))


_constant("content", "expiration-stays", "Expiration and user go on as they are.", "_IN_THE_WAY", 0x0001)
_constant("content", "transient-stays-so", "A transient message is passed on as one.", "_PERSISTENT", 1)
_constant("content", "rounds-go-on", "Rounds by one stage's delay queue are those of the next.", "_ROUNDS", frozenset())

_properties = ForwardProperties.properties


@_planted("content", (ForwardProperties, "properties"))
def _received_once(self: ForwardProperties, message: Message, token: bytes) -> bytes:
    """The moment of receipt is that of the first message ever."""
    if self._received_at >= 0:
        message.received_at = self._received_at
    return _properties(self, message, token)


@_planted("content", (ForwardProperties, "properties"))
def _one_token_for_all(self: ForwardProperties, message: Message, token: bytes) -> bytes:
    """All messages have the same token in their headers."""
    return _properties(self, message, b"1")


@_planted("order", (ForwardEncoder, "_address"))
def _no_key(self: ForwardEncoder, message: Message, scene: TemplateContext) -> None:
    """Messages with one id are published without regard for each other."""
    _address(self, message, scene)
    message.document_key = None


_address = ForwardEncoder._address


@_planted("order", (ForwardEncoder, "_address"))
def _the_latest_receipt(self: ForwardEncoder, message: Message, scene: TemplateContext) -> None:
    """What was passed on before is received here and now, and nowhere earlier."""
    _address(self, message, scene)
    message.received_at = scene._now


@_planted("content", (forward, "enveloped"))
def _enveloped_as_it_came(message: Message, scene: TemplateContext) -> bytes:
    """An envelope holds the body before line breaks are looked at: as one of its own lines."""
    return _enveloped(message, scene).replace(b"\n", b" ")


_enveloped = forward.enveloped


@_planted("copies", (republish, "_renamed"))
def _recipients_stay(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Of what would lead a copy astray the first recipients move, the blind ones don't."""
    return (name, value) if name == b"BCC" else _moved(name, value)


_moved = republish._renamed


@_planted("frames", (sidecar.amqp.confirms.frames, "publish"))
def _frames_too_large(
    channel: int, exchange: bytes, routing_key: bytes, properties: bytes, body: bytes, frame_max: int
) -> list[bytes]:
    """The frame's own bytes don't count towards its limit."""
    return _frames(channel, exchange, routing_key, properties, body, frame_max + 8)


_frames = frames.publish
