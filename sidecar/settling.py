"""What becomes of messages once their fate is known: acks, dead letters, rounds by the delay queue.

The only place that has acks written. Settling is synchronous: frames go to the transport at once, so that nothing can
be half settled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import orjson

from sidecar.copying import Copying, Route
from sidecar.core.waiting import WaitingRoom
from sidecar.ops.failures import FailureLog
from sidecar.ports import NACK_PAUSE_SECONDS, NACKS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

    from sidecar.consuming import Consuming
    from sidecar.core.account import Account, Settled
    from sidecar.core.copies import Letter
    from sidecar.core.ledger import Ledger
    from sidecar.core.message import Message
    from sidecar.core.pacing import Pacing
    from sidecar.core.split import Parts
    from sidecar.plan import Plan
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

    def take_apart(self, message: Message) -> None:
        """Have a message that did what others should do as well go by itself, and the others behind it, one by one."""
        ...

    def changed(self) -> None:
        """Take notice: something was settled, or a hold began or ended."""
        ...


class Settling:
    """Settles messages with the broker, and counts how.

    Args:
        plan: how they were composed, and what becomes of rejects.
        releaser: lets go what waits behind the settled.
        consuming: is told of room.
        pacing: says whether requests are held.
        account: where everything is counted.
        log: where failures are told.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        plan: Plan,
        releaser: Releaser,
        consuming: Consuming,
        pacing: Pacing,
        account: Account,
        *,
        log: FilteringBoundLogger,
        wall_clock: Callable[[], float],
    ) -> None:
        route = Route(
            plan.dead_letter_exchange,
            plan.dead_letter_routing_key,
            plan.retry_delay_min_seconds,
            plan.retry_delay_max_seconds,
        )
        self.copying = Copying(route, self, log, wall_clock)
        self.failures = FailureLog(log, self.target, wall_clock)
        self._plan = plan
        self._releaser = releaser
        self._consuming = consuming
        self._pacing = pacing
        self._account = account
        self._splits = plan.recipe.has_parts
        self._coalesces = plan.recipe.coalesce != "none"
        self._session: BrokerSession | None = None
        self._ack_timer: asyncio.TimerHandle | None = None
        self.waiting_room = WaitingRoom(plan.prefetch // 2, plan.memory_limit_bytes // 2)

    def attach(self, session: BrokerSession) -> None:
        """Settle by `session` from now on."""
        self._session = session
        self.copying.attach(session)

    def detach(self) -> None:
        """Note that the session was lost: what it delivered is stale."""
        session, self._session = self._session, None
        if session is not None:
            for ledger in session.ledgers:
                self._account.settle(ledger.queue, "stale", ledger.close())
        self._stop_ack_timer()
        self.waiting_room.drop_closed()
        self.copying.detach()

    def close(self) -> list[tuple[Ledger, list[int]]]:
        """Write every ack that is due, and end the epoch; return what is to be given back: ledgers, with open tags."""
        session = self._session
        if session is None:
            return []
        outstanding = []
        for ledger in session.ledgers:
            session.settle(ledger, ledger.collect(singly=True))
            outstanding.append((ledger, ledger.open_tags()))
            self._account.settle(ledger.queue, "requeue", ledger.close())
        self._stop_ack_timer()
        self.waiting_room.drop_closed()
        return outstanding

    def drop(self, messages: list[Message]) -> None:
        """Forget messages whose epoch is over; what follows them on the same documents goes on."""
        self.waiting_room.leave(messages)
        self._releaser.release(messages)

    def store(self, messages: list[Message]) -> None:
        """Ack messages: nothing more will be written for them."""
        self.waiting_room.leave(messages)
        self._releaser.release(messages)
        if self._coalesces:
            covers = [message.cover for message in messages if message.cover is not None]
            messages = messages + [covered for cover in covers for covered in cover.messages]
        if self._splits:
            self._conclude([part.parts for part in messages if part.parts is not None and part.parts.stored(part)])
        else:
            self.acknowledge(messages, "ack")

    def reject(self, letters: Iterable[Letter]) -> None:
        """Have messages dead-lettered; what follows them on the same documents goes on at once."""
        letters = self._of_their_own(letters)
        self.waiting_room.leave(letter.message for letter in letters)
        self.failures.note(letters, "discard" if self._plan.on_reject == "discard" else "dead_letter")
        self._releaser.release(letter.message for letter in letters)
        if not self._splits:
            self._bury(letters)
            return
        self._bury([letter for letter in letters if letter.message.parts is None])
        self._conclude([parts for letter in letters if (parts := letter.message.parts) and parts.rejected(letter)])

    def _bury(self, letters: list[Letter]) -> None:
        if self._plan.on_reject == "dead-letter":
            self.copying.add(letters)
            return
        ours = [letter.message for letter in letters if letter.message.ledger.holds(letter.message)]
        if self._plan.on_reject == "discard":
            self.acknowledge(ours, "discard")
        else:
            self._leave_to_broker(ours)

    def delay(self, letters: list[Letter]) -> None:
        """Send messages to the delay queue.

        Later operations on the same document wait until the delay queue has confirmed the message: if it refuses it,
        the message is retried in place, before them. For a message with several documents they go on at once: it is
        delayed as a whole, and they may be part of it.
        """
        letters = self._of_their_own(letters)
        self.waiting_room.leave(letter.message for letter in letters)
        self.failures.note(letters, "delay")
        self._account.retries["delayed"] += len(letters)
        if not self._splits:
            self.copying.add(letters)
            return
        self._releaser.release(letter.message for letter in letters)
        self._conclude([parts for letter in letters if (parts := letter.message.parts) and parts.delayed(letter)])

    def copied(self, messages: list[Message], verdict: Settled) -> None:
        """Ack messages whose copies were confirmed; release the operations that wait behind the delayed ones."""
        if verdict == "delay":
            self._releaser.release(messages)
        self.acknowledge(messages, verdict)

    def retry_undelayed(self, letters: list[Letter]) -> None:
        """Retry in place the messages that their delay queue refused; that refusal is considered at the next result."""
        whole = [letter.message for letter in letters if letter.parts is None]
        parts = [part for letter in letters if letter.parts is not None for part in letter.parts.reopen()]
        for message in (*whole, *parts):
            message.attempts = max(0, message.attempts - 1)  # the attempt that it was delayed for doesn't count
        self._releaser.retry(whole)
        self._releaser.readmit(parts)

    def _conclude(self, decided: list[Parts]) -> None:
        """Settle messages all of whose documents are decided."""
        verdicts = [(parts.message, parts.verdict()) for parts in decided]
        self.acknowledge([message for message, letter in verdicts if letter is None], "ack")
        letters = [letter for _, letter in verdicts if letter is not None]
        self._bury([letter for letter in letters if letter.verdict == "dead_letter"])
        self.copying.add([letter for letter in letters if letter.verdict == "delay"])

    def _of_their_own(self, letters: Iterable[Letter]) -> list[Letter]:
        """Return the letters of what failed by itself; what failed on behalf of others as well is taken apart."""
        own = []
        for letter in letters:
            if letter.message.cover is None:
                own.append(letter)
            else:
                self._releaser.take_apart(letter.message)
        return own

    def acknowledge(self, messages: list[Message], verdict: Settled) -> None:
        """Settle messages by acks: one frame up to the first that is open, in each channel."""
        self.waiting_room.leave(messages)
        session = self._session
        if session is None:
            return
        for ledger in session.ledgers:
            mine = [message for message in messages if message.ledger is ledger]
            if mine:
                count = ledger.store(mine)
                self._account.settle(ledger.queue, verdict, count)
                self._write_acks(session, ledger)
                self._consuming.settled(count)

    def _leave_to_broker(self, messages: list[Message]) -> None:
        """Have the queue's own dead-lettering take messages: ``basic.reject``."""
        session = self._session
        if session is None:
            return
        for message in messages:
            message.ledger.give_up(message)
            session.reject(message.ledger, message.tag)
            self._account.settle(message.ledger.queue, "dead_letter")
        self._consuming.settled(len(messages))
        self.write_acks()

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
            for at in range(0, len(mine), NACKS_AT_ONCE):
                if at:
                    await asyncio.sleep(NACK_PAUSE_SECONDS)
                await self._requeue(ledger, mine[at : at + NACKS_AT_ONCE])

    async def _requeue(self, ledger: Ledger, messages: list[Message]) -> None:
        session = self._session
        if session is None or ledger.closed:
            return
        for message in messages:
            ledger.give_up(message)
        self._account.settle(ledger.queue, "requeue", len(messages))
        self._consuming.settled(len(messages))
        await session.requeue(ledger, [message.tag for message in messages])
        self.write_acks()

    def write_acks(self) -> None:
        """Write the acks that wait behind a hole when a hold begins: it may take long until that is filled.

        They would take up the room in which the broker can deliver something to probe with, run into its consumer
        timeout, and be stored again if the session were lost.
        """
        session = self._session
        if session is not None:
            for ledger in session.ledgers:
                self._write_acks(session, ledger)

    def _write_acks(self, session: BrokerSession, ledger: Ledger) -> None:
        settlements = ledger.collect()
        held = self._pacing.held is not None or self.copying.held is not None
        if held or ledger.withheld > _WITHHELD_SHARE * self._consuming.prefetch:
            settlements += ledger.collect(singly=True)
        if settlements:
            session.settle(ledger, settlements)
        if ledger.withheld and self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(WITHHELD_SECONDS, self._write_withheld)

    def _write_withheld(self) -> None:
        """Write all withheld acks individually: one of them has waited for `WITHHELD_SECONDS`."""
        self._ack_timer = None
        session = self._session
        for ledger in session.ledgers if session is not None else ():
            if session is not None and ledger.withheld:
                session.settle(ledger, ledger.collect(singly=True))

    def _stop_ack_timer(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None

    def copying_changed(self) -> None:
        """Take notice of copies that were confirmed, or of a route that takes none."""
        if self.copying.held is not None:
            self.write_acks()
        self._releaser.changed()

    def target(self, message: Message) -> tuple[str, str, bytes]:
        """Return action, index and id, from the line that was made of the message, as far as one was."""
        recipe = self._plan.recipe
        if not message.line:
            return recipe.constant_action or "", recipe.path_index or "", b""
        ((verb, parameters),) = orjson.loads(message.line).items()
        index = parameters.get("_index", recipe.path_index or "")
        return message.action or verb, index, parameters.get("_id", "").encode()
