"""The trade of a stage in a chain: each batch is published to another exchange, and confirms say what becomes of it.

Confirms, returns and refusals are results by position, and what they mean is drawn from the same table as answers of
Elasticsearch's (`sidecar.pipeline.response_handler`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from sidecar.core.encoding.forward import ForwardEncoder, ForwardProperties
from sidecar.core.results.bulk import Result
from sidecar.core.results.policy import FRAME_ERROR, NACK, NO_ROUTE
from sidecar.core.wire.frames import properties_limit
from sidecar.errors import BrokerError
from sidecar.pipeline.response_handler import OK, ResponseHandler
from sidecar.ports import QUEUE_DURABLE_AFTER_SECONDS, OutboundMessage, Unroutable

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.encoding.forward import ForwardConfig
    from sidecar.core.message import Message
    from sidecar.core.scheduling.batcher import Batch
    from sidecar.pipeline.config import PipelineConfig
    from sidecar.pipeline.work import Workplace
    from sidecar.ports import MessagePublisher

_CONFIRMED = Result(OK)
_MOST_ROUTES = 10_000
_LOST_TOO_EARLY = "connection lost before what was confirmed was safe in a queue that may be new"
_NO_ROUTE_STATUS, _FRAME_ERROR_STATUS = 312, 501  # of AMQP; a basic.nack has none


class AmqpSink:
    """Has messages published.

    Args:
        config: what to do.
        staging: where to, and as what.
        outlet: what they are published by.
    """

    def __init__(self, config: PipelineConfig, staging: ForwardConfig, outlet: MessagePublisher) -> None:
        self._config = config
        self._staging = staging
        self._outlet = outlet

    async def check(self) -> str | None:
        """Return why publishing is in vain now, or None."""
        return await self._outlet.check()

    def encoder(self, make_id: Callable[[], str]) -> ForwardEncoder:  # noqa: ARG002 - ids are the messages' own
        """Return what finds out where messages go."""
        return ForwardEncoder(self._config.encoder_config, self._staging)

    def employ(self, place: Workplace) -> Publishes:
        """Return what publishes for one pipeline."""
        return Publishes(self._config, self._staging, self._outlet, place)


class Publishes:
    """Publishes batches and has conclusions drawn from what the broker says.

    Args:
        config: what to do.
        staging: where to, and as what.
        outlet: what they are published by.
        place: where the conclusions take effect.
    """

    def __init__(
        self, config: PipelineConfig, staging: ForwardConfig, outlet: MessagePublisher, place: Workplace
    ) -> None:
        self._staging = staging
        self._outlet = outlet
        self._stamp = ForwardProperties(staging)
        self._counters = place.counters
        self._concluding = ResponseHandler(config, place)
        self._published = 0
        self._routes = Routes()
        outlet.on_blocked = self._blocked_changed

    async def carry_out(self, batch: Batch, *, probe: bool) -> None:
        """Publish a batch and deal with what the broker says of each message, or with its silence."""
        reason = await self._outlet.check()
        if reason is not None:  # what is written into an alarm would wait at the broker's door, nobody knows how long
            kind = "unreachable" if self._outlet.blocked is None else "blocked"
            self._concluding.on_not_sent(batch, kind, reason, probe=probe)
            return
        clock = asyncio.get_running_loop().time
        sent_at = clock()
        try:
            refusals = await self._publish(batch)
        except BrokerError as error:
            self._counters.bulk_seconds.observe(clock() - sent_at)
            self._concluding.on_no_response(batch, str(error), probe=probe)
            return
        self._counters.bulk_seconds.observe(clock() - sent_at)
        connection = self._outlet.connection
        waited = await self._routes.old_enough(batch.messages, refusals)
        if waited and (connection is None or connection != self._outlet.connection):
            self._concluding.on_no_response(batch, _LOST_TOO_EARLY, probe=probe)
            return
        if refusals.count(None) == len(refusals):
            self._concluding.on_all_stored(batch, sent_at)
        else:
            self._concluding.on_item_results(batch, [_result(refusal) for refusal in refusals], sent_at, probe=probe)

    async def _publish(self, batch: Batch) -> list[str | Result | None]:
        """Return why messages weren't taken, by position; None where one was.

        Raises:
            BrokerError: what became of them is unknown.
        """
        copies = [self._copy(message) for message in batch.messages]
        most = properties_limit(self._outlet.frame_max)
        if max([len(copy.properties) for copy in copies]) <= most:
            return cast("list[str | Result | None]", await self._outlet.publish(copies))
        fitting = [copy for copy in copies if len(copy.properties) <= most]
        refusals = iter(await self._outlet.publish(fitting) if fitting else [])
        return [next(refusals) if len(copy.properties) <= most else _too_large(copy, most) for copy in copies]

    def _copy(self, message: Message) -> OutboundMessage:
        self._published += 1
        token = b"%d" % self._published
        properties = self._stamp.properties(message, token)
        source = message.source
        assert source is not None  # only mere signals have none, and they are acked before
        return OutboundMessage(self._staging.exchange, cast("bytes", message.made), properties, source, token)

    def _blocked_changed(self) -> None:
        """Hold while the broker takes nothing: what was written before waits for its confirms, as the rest would."""
        if self._outlet.blocked is not None:
            self._concluding.hold("blocked", self._outlet.blocked)


class Routes:
    """Knows which confirms may come from queues so young that RabbitMQ may yet forget what is in them.

    The next stage may have created its queue just before the first publish, or at any time where none was there before.
    """

    def __init__(self) -> None:
        self._first_seen_at: float | None = None
        self._without_queue: set[object] = set()
        self._appeared_at: dict[object, float] = {}

    async def old_enough(self, messages: list[Message], refusals: list[str | Result | None]) -> bool:
        """Wait until what is confirmed is safe; return whether it wasn't yet.

        The broker may be killed in the meantime, and forget it: then the connection is lost.
        """
        now = asyncio.get_running_loop().time()
        if self._first_seen_at is None:
            self._first_seen_at = now
        since = self._first_seen_at
        if self._without_queue or self._appeared_at or refusals.count(None) < len(refusals):
            since = max(since, self._latest(messages, refusals, now))
        if since + QUEUE_DURABLE_AFTER_SECONDS <= now:
            return False
        await asyncio.sleep(since + QUEUE_DURABLE_AFTER_SECONDS - now)
        return True

    def _latest(self, messages: list[Message], refusals: list[str | Result | None], now: float) -> float:
        """Return when the youngest of the queues appeared that some of these messages went to."""
        latest = 0.0
        self._appeared_at = {key: at for key, at in self._appeared_at.items() if at + QUEUE_DURABLE_AFTER_SECONDS > now}
        for message, refusal in zip(messages, refusals, strict=True):
            route = message.made
            if isinstance(refusal, Unroutable):
                self._without_queue.add(route)
            elif refusal is None:
                if route in self._without_queue:
                    self._without_queue.discard(route)
                    self._appeared_at[route] = now
                latest = max(latest, self._appeared_at.get(route, 0.0))
        if len(self._without_queue) > _MOST_ROUTES:
            self._without_queue.clear()
        return latest


def _too_large(copy: OutboundMessage, max_bytes: int) -> Result:
    why = f"its properties have {len(copy.properties)} bytes; a frame of the broker's takes {max_bytes}"
    return Result(_FRAME_ERROR_STATUS, FRAME_ERROR, why)


def _result(refusal: str | Result | None) -> Result:
    """Return what the table of verdicts is to be asked."""
    if refusal is None:
        return _CONFIRMED
    if isinstance(refusal, Result):
        return refusal
    if isinstance(refusal, Unroutable):
        return Result(_NO_ROUTE_STATUS, NO_ROUTE, refusal)
    return Result(0, NACK, refusal)
