"""The composition root, and the life of the sidecar: connect, consume, reconnect, drain.

Written against the ports: what connects and where requests go is passed in, and so is the awaitable that ends it all.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.core.flow.limiter import backoff_seconds
from sidecar.core.stats.snapshot import NotReady
from sidecar.errors import BrokerError, QueueError

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.stats.snapshot import Snapshot
    from sidecar.pipeline.pipeline import Pipeline
    from sidecar.ports import BrokerSession, Receive

    Connect = Callable[[Receive], Awaitable[BrokerSession]]

RECONNECT_MIN_SECONDS = 1.0
RECONNECT_MAX_SECONDS = 5.0
_SHORT_SECONDS = 10.0
_CANCEL_AGAIN_SECONDS = 0.1
_CLOSING_SECONDS = 2.0
_SENDING_SHARE = 0.8  # of the shutdown time: what is in flight then is still waited for
_ANSWERS_SHARE = 0.92  # of the shutdown time: giving back and closing take the rest


class App:
    """A pipeline between the broker and the sink, from start to drain.

    Args:
        pipeline: does the work.
        connect: opens a session with the broker that delivers to the callable that it is given.
        rng: the only source of chance.
        log: where state changes are told.
        shutdown_seconds: how long the end may take.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        connect: Connect,
        *,
        rng: random.Random,
        log: FilteringBoundLogger,
        shutdown_seconds: float,
    ) -> None:
        self.session: BrokerSession | None = None
        self._draining = False
        self._startup_obstacle: NotReady | None = None
        self._not_ready: NotReady | None = None  # why there is no session
        self._pipeline = pipeline
        self._connect = connect
        self._rng = rng
        self._log = log
        self._shutdown_seconds = shutdown_seconds
        self._told: dict[str, None] = {}  # notes about queues, each once

    def snapshot(self) -> Snapshot:
        """Return what is happening at this moment."""
        state = self._pipeline.snapshot()
        if self._draining:
            return state._replace(not_ready=NotReady("draining", "the sidecar was told to stop"))
        if self._startup_obstacle is not None:
            return state._replace(not_ready=self._startup_obstacle)
        if not state.connected and self._not_ready is not None:
            return state._replace(not_ready=self._not_ready)
        return state

    def note_startup(self, obstacle: NotReady | None) -> None:
        """Note why `run` can't be called yet; None: it can."""
        self._startup_obstacle = obstacle

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, then drain: what was not stored goes back to the queue.

        Raises:
            ExceptionGroup: a fault of ours; what was not settled is with the broker again.
        """
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(self._pipeline.run())
            serving = tasks.create_task(self._serve())
            await stop.wait()
            self._draining = True
            deadline = asyncio.get_running_loop().time() + self._shutdown_seconds
            self._log.info("sidecar.draining", seconds=self._shutdown_seconds, **self._pipeline.counters.summary())
            while not serving.done():
                # Again and again: where a connection is just being opened or closed, one may be lost in a library.
                serving.cancel()
                await asyncio.wait([serving], timeout=_CANCEL_AGAIN_SECONDS)
            await self._drain(deadline)
            work.cancel()
        counters = self._pipeline.counters
        self._pipeline.flush_failure_log()
        self._log.info("sidecar.stopped", **counters.summary(), **counters.work())

    async def _pause(self, tries: int) -> None:
        pause = backoff_seconds(tries, self._rng.random(), RECONNECT_MIN_SECONDS, RECONNECT_MAX_SECONDS)
        await asyncio.sleep(max(pause, RECONNECT_MIN_SECONDS / 4))

    async def _serve(self) -> None:
        """Hold a session with the broker, one after the other, for ever."""
        tries = 0
        while True:
            try:
                session = await self._connect(self._pipeline.receive)
            except BrokerError as error:
                tries += 1
                self._log_unconnected(error, tries)
                await self._pause(tries)
                continue
            self.session = session
            self._log.info("amqp.connected", queues=[ledger.queue for ledger in session.ledgers])
            for sentence in session.recreated:
                self._log.error("amqp.recreated", reason=sentence)
            for note in session.warnings:
                if note not in self._told:
                    self._told[note] = None
                    self._log.warning("amqp.queue", note=note)
            began_at = asyncio.get_running_loop().time()
            self._pipeline.attach(session)
            reason = await asyncio.shield(session.lost)
            self._log.warning("amqp.lost", reason=reason)
            self.session, self._not_ready = None, NotReady("not-connected", reason)
            self._pipeline.detach()
            await session.close()
            lasted_seconds = asyncio.get_running_loop().time() - began_at
            tries = tries + 1 if lasted_seconds < _SHORT_SECONDS else 1  # one that was refused soon is refused again
            await self._pause(tries)

    def _log_unconnected(self, error: BrokerError, tries: int) -> None:
        """Log why there is no session: the first time, and whenever a queue needs attention for another reason."""
        before = self._not_ready
        self._not_ready = NotReady(error.reason if isinstance(error, QueueError) else "not-connected", str(error))
        if isinstance(error, QueueError):
            if self._not_ready == before:
                return
            if error.reason == "queue-gone":
                self._log.error("amqp.queue_gone", reason=str(error))
            else:
                self._log.error("amqp.queue_refused", reason=str(error))
        elif tries == 1:
            self._log.warning("amqp.unreachable", reason=str(error))
        else:
            self._log.debug("amqp.unreachable", reason=str(error), tries=tries)

    async def _drain(self, deadline: float) -> None:
        session = self.session
        if session is None:
            return
        try:
            await self._pipeline.stop_consuming()
            asked_at = deadline - self._shutdown_seconds
            await self._pipeline.drain(
                asked_at + self._shutdown_seconds * _SENDING_SHARE, asked_at + self._shutdown_seconds * _ANSWERS_SHARE
            )
        except BrokerError as error:
            self._log.warning("amqp.lost", reason=str(error))
        if session.lost.done():
            self._pipeline.detach()
        else:
            with suppress(BrokerError):  # lost in the meantime, which comes to the same
                await self._pipeline.give_back()
        try:
            async with asyncio.timeout(max(_CLOSING_SECONDS, deadline - asyncio.get_running_loop().time())):
                await session.close()
        except TimeoutError:
            self._log.warning("amqp.lost", reason="RabbitMQ didn't answer to the close")
