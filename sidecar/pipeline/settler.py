"""What becomes of messages once their fate is known: acks, dead letters, rounds by the delay queue.

The only place that has acks written. Settler is synchronous: frames go to the transport at once, so that nothing can
be half settled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import orjson

from sidecar.core.scheduling.waiting_room import WaitingRoom
from sidecar.pipeline.failure_log import FailureLog
from sidecar.pipeline.republisher import DeadLetterRoute, Republisher
from sidecar.ports import NACK_BATCH, NACK_PAUSE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.encoding.split import SplitMessage
    from sidecar.core.flow.limiter import SendLimiter
    from sidecar.core.ledger import Ledger
    from sidecar.core.message import Message
    from sidecar.core.stats.counters import Counters, Settled
    from sidecar.core.wire.republish import Failure
    from sidecar.pipeline.config import PipelineConfig
    from sidecar.pipeline.flow_control import FlowControl
    from sidecar.ports import BrokerSession

WITHHELD_SECONDS = 2.0
"""How long an ack waits for those before it, at most; then it is written individually.

An unsettled message before it may stay for minutes, if it waits in place for its target. If the session were lost
meanwhile, all messages stored after it would be delivered and stored again.
"""
_WITHHELD_SHARE = 0.75  # of the prefetch: beyond it acks are written singly, or the broker would stop delivering


class Releaser(Protocol):
    """What holds back operations on documents that have one open: the pipeline."""

    def release(self, messages: Iterable[Message]) -> None:
        """Let the next operations on the same documents go."""
        ...

    def retry(self, messages: list[Message]) -> None:
        """Send again messages that still have their place in the order of their documents."""
        ...

    def readmit(self, messages: list[Message]) -> None:
        """Send messages again, behind later operations on the same documents."""
        ...

    def retry_uncoalesced(self, message: Message) -> None:
        """Have a message that did what others should do as well go by itself, and the others behind it, one by one."""
        ...

    def wake(self) -> None:
        """Take notice: something was settled, or a hold began or ended."""
        ...


class Settler:
    """Settles messages with the broker, and counts how.

    Args:
        config: how they were composed, and what becomes of rejects.
        releaser: lets go what waits behind the settled.
        flow_control: is told of room.
        limiter: says whether requests are held.
        counters: where everything is counted.
        log: where failures are told.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        config: PipelineConfig,
        releaser: Releaser,
        flow_control: FlowControl,
        limiter: SendLimiter,
        counters: Counters,
        *,
        log: FilteringBoundLogger,
        wall_clock: Callable[[], float],
    ) -> None:
        route = DeadLetterRoute(
            config.dead_letter_exchange,
            config.dead_letter_routing_key,
            config.retry_delay_min_seconds,
            config.retry_delay_max_seconds,
        )
        self.republisher = Republisher(route, self, log, wall_clock)
        self.failure_log = FailureLog(log, self.target, wall_clock)
        self._config = config
        self._releaser = releaser
        self._flow_control = flow_control
        self._limiter = limiter
        self._counters = counters
        self._splits = config.encoder_config.splits
        self._coalesces = config.encoder_config.coalesce != "none"
        self._session: BrokerSession | None = None
        self._ack_timer: asyncio.TimerHandle | None = None
        self.waiting_room = WaitingRoom(config.prefetch // 2, config.memory_limit_bytes // 2)

    def attach(self, session: BrokerSession) -> None:
        """Settle by `session` from now on."""
        self._session = session
        self.republisher.attach(session)

    def detach(self) -> None:
        """Note that the session was lost: what it delivered is stale."""
        session, self._session = self._session, None
        if session is not None:
            for ledger in session.ledgers:
                self._counters.settle(ledger.queue, "stale", ledger.close())
        self._stop_ack_timer()
        self.waiting_room.drop_closed()
        self.republisher.detach()

    def close(self) -> list[tuple[Ledger, list[int]]]:
        """Write every ack that is due, and end the epoch; return what is to be given back: ledgers, with open tags."""
        session = self._session
        if session is None:
            return []
        outstanding = []
        for ledger in session.ledgers:
            session.settle(ledger, ledger.take_acks(individually=True))
            outstanding.append((ledger, ledger.open_tags()))
            self._counters.settle(ledger.queue, "requeue", ledger.close())
        self._stop_ack_timer()
        self.waiting_room.drop_closed()
        return outstanding

    def forget(self, messages: list[Message]) -> None:
        """Forget messages whose epoch is over; what follows them on the same documents goes on."""
        self.waiting_room.leave(messages)
        self._releaser.release(messages)

    def ack(self, messages: list[Message]) -> None:
        """Ack messages: nothing more will be written for them."""
        self.waiting_room.leave(messages)
        self._releaser.release(messages)
        if self._coalesces:
            covers = [message.coalesced for message in messages if message.coalesced is not None]
            messages = messages + [covered for cover in covers for covered in cover.messages]
        if self._splits:
            self._settle_split(
                [part.split for part in messages if part.split is not None and part.split.on_stored(part)]
            )
        else:
            self.ack_as(messages, "ack")

    def dead_letter(self, failures: Iterable[Failure]) -> None:
        """Have messages dead-lettered; what follows them on the same documents goes on at once."""
        failures = self._without_coalesced(failures)
        self.waiting_room.leave(failure.message for failure in failures)
        self.failure_log.note(failures, "discard" if self._config.on_reject == "discard" else "dead_letter")
        self._releaser.release(failure.message for failure in failures)
        if not self._splits:
            self._reject_per_policy(failures)
            return
        self._reject_per_policy([failure for failure in failures if failure.message.split is None])
        self._settle_split(
            [parts for failure in failures if (parts := failure.message.split) and parts.on_rejected(failure)]
        )

    def _reject_per_policy(self, failures: list[Failure]) -> None:
        if self._config.on_reject == "dead-letter":
            self.republisher.enqueue(failures)
            return
        ours = [failure.message for failure in failures if failure.message.ledger.is_open(failure.message)]
        if self._config.on_reject == "discard":
            self.ack_as(ours, "discard")
        else:
            self._basic_reject(ours)

    def delay(self, failures: list[Failure]) -> None:
        """Send messages to the delay queue.

        Later operations on the same document wait until the delay queue has confirmed the message: if it refuses it,
        the message is retried in place, before them. For a message with several documents they go on at once: it is
        delayed as a whole, and they may be part of it.
        """
        failures = self._without_coalesced(failures)
        self.waiting_room.leave(failure.message for failure in failures)
        self.failure_log.note(failures, "delay")
        self._counters.retries["delayed"] += len(failures)
        if not self._splits:
            self.republisher.enqueue(failures)
            return
        self._releaser.release(failure.message for failure in failures)
        self._settle_split(
            [parts for failure in failures if (parts := failure.message.split) and parts.on_delayed(failure)]
        )

    def on_copies_confirmed(self, messages: list[Message], verdict: Settled) -> None:
        """Ack messages whose copies were confirmed; release the operations that wait behind the delayed ones."""
        if verdict == "delay":
            self._releaser.release(messages)
        self.ack_as(messages, verdict)

    def retry_undelayed(self, failures: list[Failure]) -> None:
        """Retry in place the messages that their delay queue refused; that refusal is considered at the next result."""
        whole = [failure.message for failure in failures if failure.parts is None]
        parts = [part for failure in failures if failure.parts is not None for part in failure.parts.reopen()]
        for message in (*whole, *parts):
            message.attempts = max(0, message.attempts - 1)  # the attempt that it was delayed for doesn't count
        self._releaser.retry(whole)
        self._releaser.readmit(parts)

    def _settle_split(self, decided: list[SplitMessage]) -> None:
        """Settle messages all of whose documents are decided."""
        verdicts = [(parts.message, parts.outcome()) for parts in decided]
        self.ack_as([message for message, failure in verdicts if failure is None], "ack")
        failures = [failure for _, failure in verdicts if failure is not None]
        self._reject_per_policy([failure for failure in failures if failure.verdict == "dead_letter"])
        self.republisher.enqueue([failure for failure in failures if failure.verdict == "delay"])

    def _without_coalesced(self, failures: Iterable[Failure]) -> list[Failure]:
        """Return the letters of what failed by itself; what failed on behalf of others as well is taken apart."""
        own = []
        for failure in failures:
            if failure.message.coalesced is None:
                own.append(failure)
            else:
                self._releaser.retry_uncoalesced(failure.message)
        return own

    def ack_as(self, messages: list[Message], verdict: Settled) -> None:
        """Settle messages by acks: one frame up to the first that is open, in each channel."""
        self.waiting_room.leave(messages)
        session = self._session
        if session is None:
            return
        for ledger in session.ledgers:
            mine = [message for message in messages if message.ledger is ledger]
            if mine:
                count = ledger.mark_stored(mine)
                self._counters.settle(ledger.queue, verdict, count)
                self._flush_acks(session, ledger)
                self._flow_control.on_settled(count)

    def _basic_reject(self, messages: list[Message]) -> None:
        """Have the queue's own dead-lettering take messages: ``basic.reject``."""
        session = self._session
        if session is None:
            return
        for message in messages:
            message.ledger.mark_settled(message)
            session.reject(message.ledger, message.tag)
            self._counters.settle(message.ledger.queue, "dead_letter")
        self._flow_control.on_settled(len(messages))
        self.flush_acks()

    async def requeue(self, messages: list[Message]) -> None:
        """Have the broker take messages back, each by itself, in this order; nothing is counted against them.

        A few at a time, each of which is open until its nack is written: one ack of all up to a later message would
        take it along otherwise. Cut off in the middle, the rest is open still.
        """
        self.waiting_room.leave(messages)
        self._releaser.release(messages)
        session = self._session
        for ledger in session.ledgers if session is not None else ():
            mine = [message for message in messages if message.ledger is ledger]
            for at in range(0, len(mine), NACK_BATCH):
                if at:
                    await asyncio.sleep(NACK_PAUSE_SECONDS)
                await self._requeue(ledger, mine[at : at + NACK_BATCH])

    async def _requeue(self, ledger: Ledger, messages: list[Message]) -> None:
        session = self._session
        if session is None or ledger.closed:
            return
        for message in messages:
            ledger.mark_settled(message)
        self._counters.settle(ledger.queue, "requeue", len(messages))
        self._flow_control.on_settled(len(messages))
        await session.requeue(ledger, [message.tag for message in messages])
        self.flush_acks()

    def flush_acks(self) -> None:
        """Write the acks that wait behind a hole when a hold begins: it may take long until that is filled.

        They would take up the room in which the broker can deliver something to probe with, run into its consumer
        timeout, and be stored again if the session were lost.
        """
        session = self._session
        if session is not None:
            for ledger in session.ledgers:
                self._flush_acks(session, ledger)

    def _flush_acks(self, session: BrokerSession, ledger: Ledger) -> None:
        settlements = ledger.take_acks()
        held = self._limiter.held is not None or self.republisher.held is not None
        if held or ledger.ackable > _WITHHELD_SHARE * self._flow_control.prefetch:
            settlements += ledger.take_acks(individually=True)
        if settlements:
            session.settle(ledger, settlements)
        if ledger.ackable and self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(WITHHELD_SECONDS, self._flush_withheld)

    def _flush_withheld(self) -> None:
        """Write all withheld acks individually: one of them has waited for `WITHHELD_SECONDS`."""
        self._ack_timer = None
        session = self._session
        for ledger in session.ledgers if session is not None else ():
            if session is not None and ledger.ackable:
                session.settle(ledger, ledger.take_acks(individually=True))

    def _stop_ack_timer(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None

    def on_republished(self) -> None:
        """Take notice of copies that were confirmed, or of a route that takes none."""
        if self.republisher.held is not None:
            self.flush_acks()
        self._releaser.wake()

    def target(self, message: Message) -> tuple[str, str, bytes]:
        """Return action, index and id, from the line that was made of the message, as far as one was."""
        encoder_config = self._config.encoder_config
        if not message.action_line:
            return encoder_config.constant_action or "", encoder_config.path_index or "", b""
        ((verb, parameters),) = orjson.loads(message.action_line).items()
        index = parameters.get("_index", encoder_config.path_index or "")
        return message.action or verb, index, parameters.get("_id", "").encode()
