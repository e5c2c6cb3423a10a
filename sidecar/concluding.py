"""What an answer means: each result for its own message, and each refusal for the requests to come.

The table is in `sidecar.core.policy`; here it is applied: attempts are counted, batches go again, are split or wait,
and a hold begins where nothing succeeds any more.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core import bulk
from sidecar.core.copies import Letter, delay_seconds, may_go_round, milliseconds, own_doing, rounds
from sidecar.core.guard import kind_of
from sidecar.core.pacing import backoff_seconds
from sidecar.core.policy import OUTCOMES, Course, Fate, Rule, Verdict, decide, decide_undelayed, judge, judge_request
from sidecar.core.properties import published_at
from sidecar.core.suspects import Suspects

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.batcher import Batch
    from sidecar.core.bulk import Fault, Result
    from sidecar.core.message import Message
    from sidecar.plan import Plan
    from sidecar.ports import Answer
    from sidecar.work import Workplace

OK = 200
BLOCKED_GUARD = 1000  # messages in a row that no target takes, before everything waits
_THROTTLED_LOG_SECONDS = 10.0
_TARGET_VERDICTS = frozenset({Verdict.BLOCKED, Verdict.MISSING, Verdict.UNROUTABLE})
_IN_PLACE = frozenset({Fate.AGAIN, Fate.WAIT})


class _Fates(NamedTuple):
    """The messages of one answer, by what happens to them next; of the stored ones, those in a failure store.

    Attributes:
        blocked: of those that are retried in place beside others, because their target accepts nothing.
        why_waiting: of those that wait for their target.
    """

    stored: list[Message]
    in_failure_store: list[Letter]
    throttled: list[Message]
    later: list[Message]
    blocked: list[Message]
    waiting: list[Message]
    why_waiting: list[Letter]
    delayed: list[Letter]
    letters: list[Letter]


def _first(batch: Batch, results: list[Result], verdicts: frozenset[Verdict]) -> tuple[Message, Result]:
    """Return the first message whose result has one of the verdicts, and that result."""
    pairs = zip(batch.messages, results, strict=True)
    return next(pair for pair in pairs if judge(pair[1], "").verdict in verdicts)


def _blanked(reason: str, messages: list[Message]) -> str:
    """Return a reason without what it quotes from one of the messages."""
    return bulk.blank(reason, b"\n".join(message.source or message.body for message in messages))


def _told_item(message: Message, result: Result) -> str:
    """Return why a message's item was refused, without what that quotes from the message."""
    status = f"{result.status} " if result.status else ""
    return f"{status}{result.error_type}: {_blanked(result.reason, [message])}"


def _told(fault: Fault, batch: Batch) -> str:
    """Return why a whole request was refused, without what that quotes from its messages."""
    return str(fault._replace(reason=_blanked(fault.reason, batch.messages)))


class Concluding:
    """Draws the conclusions from answers.

    Args:
        plan: what to do.
        place: where the conclusions take effect.
    """

    def __init__(self, plan: Plan, place: Workplace) -> None:
        self._plan = plan
        self._settling = place.settling
        self._outbox = place.outbox
        self._pacing = place.pacing
        self._account = place.account
        self._hold_changed = place.hold_changed
        self._starved = place.starved
        self._dice = place.dice
        self._log = place.log
        self._wall_clock = place.wall_clock
        self._guard = place.guard
        # Where all messages have one target and that is blocked, everything waits; where they have several, the others'
        # messages may just be rare.
        self._one_target = one_target = plan.recipe.path_index is not None
        self._blocked_guard = BLOCKED_GUARD if one_target else 0
        # Those that wait in place take up the prefetch: when it is all theirs, no others come any more.
        self._waiting_guard = 1 if one_target else plan.prefetch
        self._waiting_in_a_row = 0
        self._suspects = Suspects()
        self._succeeded_sent_at = -1.0  # when the last request left that was answered item by item
        self._throttled_silent_until = 0.0

    # Answers ---------------------------------------------------------------------------------------------------------

    def conclude(self, batch: Batch, answer: Answer, sent_at: float, *, probe: bool) -> None:
        """Deal with an answer.

        Args:
            batch: what was sent.
            answer: to it.
            sent_at: when it left, in seconds of the loop's clock.
            probe: whether it was sent to find out whether Elasticsearch is back.
        """
        count = len(batch.messages)
        if answer.status == OK and bulk.all_stored(answer.body, count):
            self.stored(batch, sent_at)
            return
        results = bulk.results(answer.body, count) if answer.status == OK else None
        if results is not None:
            self.apply(batch, results, sent_at, probe=probe)
        else:
            self._refused(batch, answer, sent_at, probe=probe)

    def stored(self, batch: Batch, sent_at: float) -> None:
        """Deal with an answer that all was well: most of them.

        Args:
            batch: what was sent.
            sent_at: when it left, in seconds of the loop's clock.
        """
        messages = batch.messages
        self._heard()
        self._succeeded_sent_at = max(self._succeeded_sent_at, sent_at)
        self._pacing.stored(self._now(), sent_at, len(messages) / self._plan.batch_max_items)
        self._account.requests["stored"] += 1
        self._count_stored(messages)
        self._store(messages)
        self._note_stored(batch, messages, sent_at)

    def _count_stored(self, messages: list[Message]) -> None:
        action = self._plan.recipe.constant_action
        if action is not None:
            self._account.documents[action, "success"] += len(messages)
        else:
            self._account.documents.update((message.action, "success") for message in messages)

    def _note_stored(self, batch: Batch, stored: list[Message], sent_at: float) -> None:
        """Measure how long the first message of a request took; one for all of them, or it would cost too much."""
        now, wall = self._now(), self._wall_clock()
        since = published_at(stored[0].properties, wall)
        self._account.end_to_end_seconds.observe(now - batch.opened_at if since is None else max(0.0, wall - since))
        self._log.debug(
            "batch.stored",
            items=len(stored),
            of=len(batch.messages),
            bytes=batch.body_bytes,
            trigger=batch.trigger,
            seconds=round(now - sent_at, 3),
        )

    def _heard(self) -> None:
        """Note that Elasticsearch is there and speaks of our items: a hold is over."""
        if self._pacing.answered():
            self._log.info(self._plan.far.resumed)
            self._hold_changed()

    def apply(self, batch: Batch, results: list[Result], sent_at: float, *, probe: bool) -> None:
        """Map each result to its own message: the reason why this program exists.

        Args:
            batch: what was sent.
            results: of its messages, by position.
            sent_at: when it left, in seconds of the loop's clock.
            probe: whether it was sent to find out whether a hold is over.
        """
        self._succeeded_sent_at = max(self._succeeded_sent_at, sent_at)
        self._account.requests["partial"] += 1
        fates = self._sort(batch, results)
        letters, delayed = self._keep_back(batch, fates, results, probe=probe)
        if fates.throttled:
            share = len(fates.throttled) / len(results)
            reason = partial(_told_item, *_first(batch, results, frozenset({Verdict.THROTTLED})))
            crowded = batch.again(fates.throttled)
            if fates.stored:  # there is room, only not for all at once: no reason to wait ever longer
                crowded.tries = 0
            self._crowded(crowded, sent_at, share, reason, probe=probe)
        else:
            self._pacing.stored(self._now(), sent_at, len(results) / self._plan.batch_max_items)
        self._retry_in_place(batch, fates)
        if fates.why_waiting and not probe:
            self._settling.failures.note(fates.why_waiting, "wait")
        if fates.in_failure_store:
            self._settling.failures.note(fates.in_failure_store, "ack")
        if fates.stored:
            self._store(fates.stored)
            self._note_stored(batch, fates.stored, sent_at)
        if letters:
            self._settling.reject(letters)
        if delayed:
            self._settling.delay(delayed)

    def _retry_in_place(self, batch: Batch, fates: _Fates) -> None:
        for messages in (fates.later, fates.blocked, fates.waiting):
            if messages:
                again = batch.again(messages)
                again.waits = messages is not fates.later
                self._go_again(again, "failed")

    def _keep_back(
        self, batch: Batch, fates: _Fates, results: list[Result], *, probe: bool
    ) -> tuple[list[Letter], list[Letter]]:
        """Hold where too much of a kind is refused, and nothing taken; return the letters that may leave yet."""
        letters, delayed = fates.letters, fates.delayed
        guarded: list[Letter] = []
        if fates.stored:
            self._guard.stored()
            self._waiting_in_a_row = 0
        else:
            letters, guarded = self._guard.split(fates.letters)
            delayed, kept = self._guard.split(fates.delayed, self._blocked_guard)
            guarded += kept
            self._waiting_in_a_row += len(fates.waiting)
        if guarded:
            for letter in guarded:
                letter.message.attempts -= 1  # it is the document's kind that is on trial, not this one
            self._hold_back(batch, guarded, probe=probe)
        elif fates.waiting and self._nothing_else_comes():
            self._wait(batch, fates, results, probe=probe)
        elif len(fates.throttled) < len(results):
            self._heard()
        return letters, delayed

    def _nothing_else_comes(self) -> bool:
        """Whether those that wait for their targets are all that there is, as far as is known."""
        return self._waiting_in_a_row >= self._waiting_guard and (self._one_target or self._starved())

    def _wait(self, batch: Batch, fates: _Fates, results: list[Result], *, probe: bool) -> None:
        """Hold until the target of what waits in place takes it: nothing else comes before that."""
        message, example = _first(batch, results, _TARGET_VERDICTS)
        reason = _blanked(example.reason, [message])
        if judge(example, "").verdict is not Verdict.UNROUTABLE:
            _, index, _ = self._settling.target(message)
            reason = f"the index {index!r} accepts no documents: {example.error_type}: {reason}"
        self._hold(example.error_type, reason, probe=probe)
        again = batch.again(list(fates.waiting))
        again.ready_at = 0.0
        self._put_again(again)
        fates.waiting.clear()

    def _may_leave(self, batch: Batch, letter: Letter, *, probe: bool) -> bool:
        """Whether the only message of a batch may be rejected; hold if too many of its kind came in a row."""
        _, guarded = self._guard.split([letter])
        if guarded:
            self._hold_back(batch, guarded, probe=probe)
        return not guarded

    def _hold_back(self, batch: Batch, guarded: list[Letter], *, probe: bool) -> None:
        example = guarded[0]
        kind = kind_of(example.reason, example.error_type)
        reason = f"{self._guard.refused(example)} documents in a row were refused: {kind}: {example.detail}"
        self._hold(f"guard {kind}", reason, probe=probe)
        again = batch.again([letter.message for letter in guarded])
        again.ready_at = 0.0
        self._put_again(again)

    def _sort(self, batch: Batch, results: list[Result]) -> _Fates:
        fates = _Fates([], [], [], [], [], [], [], [], [])
        outcomes = self._account.documents
        action = self._plan.recipe.constant_action or ""
        for message, result in zip(batch.messages, results, strict=True):
            if result.status in bulk.STORED_STATUSES and not result.failure_store:  # most, without a look at the table
                fates.stored.append(message)
                outcomes[message.action or action, "success"] += 1
                continue
            rule = judge(result, message.action or action)
            outcomes[message.action or action, OUTCOMES[rule.verdict]] += 1
            fate = self._decide(message, rule)
            if fate is Fate.STORED:
                fates.stored.append(message)
                if rule.verdict is Verdict.FAILURE_STORE:
                    fates.in_failure_store.append(self._letter(message, result, rule))
            elif fate is Fate.THROTTLED:
                fates.throttled.append(message)
            elif fate is Fate.AGAIN:
                (fates.blocked if rule.verdict in _TARGET_VERDICTS else fates.later).append(message)
            elif fate is Fate.WAIT:
                fates.waiting.append(message)
                if not batch.tries:
                    fates.why_waiting.append(self._letter(message, result, rule))
            elif fate is Fate.DELAY:
                fates.delayed.append(self._round(message, result, rule))
            else:
                fates.letters.append(self._letter(message, result, rule))
        return fates

    def _decide(self, message: Message, rule: Rule) -> Fate:
        plan = self._plan
        attempts = message.attempts + (rule.verdict is not Verdict.THROTTLED)
        travels = not plan.recipe.has_parts or self._travels(message)
        fate = decide(
            rule,
            plan.choices,
            own_doing=own_doing(message),
            may_try=attempts < plan.retry_max_attempts,
            may_go_round=travels
            and may_go_round(
                message, versioned=plan.recipe.version is not None, most_rounds=plan.delayed_retry_max_rounds
            ),
        )
        if fate is Fate.DELAY and not travels:
            fate = Fate.AGAIN
        elif fate is Fate.DELAY and self._settling.copying.delays_refused(
            message.ledger.queue, self._delay_milliseconds(message, rule)
        ):
            room = self._settling.waiting_room
            fate = decide_undelayed(
                rule, plan.choices, one_target=self._one_target, has_room=lambda: room.admit(message)
            )
        if fate not in _IN_PLACE or rule.verdict is Verdict.COUNTED:  # to wait for a target counts for nothing later
            message.attempts = attempts
        return fate

    def _travels(self, part: Message) -> bool:
        """Whether a document may go round by the delay queue, which takes its whole message.

        Its neighbours are written again then: twice, where nothing in the message says which documents they are.
        """
        alone = part.parts is None or part.parts.count == 1
        return alone or (part.key is not None and self._plan.recipe.id_mode != "generated")

    def _round(self, message: Message, result: Result, rule: Rule) -> Letter:
        """Return the delayed copy of a message: a failure's rounds are counted, waiting for a target is not."""
        letter = self._letter(message, result, rule)
        return letter._replace(
            delay_milliseconds=self._delay_milliseconds(message, rule),
            rounds=rounds(message) + (rule.verdict is Verdict.COUNTED),
        )

    def _delay_milliseconds(self, message: Message, rule: Rule) -> int:
        first_seconds = self._plan.delayed_retry_delay_seconds
        counted = rule.verdict is Verdict.COUNTED
        return milliseconds(delay_seconds(message, first_seconds, counted=counted, now=self._wall_clock()))

    def _may_try_again(self, message: Message) -> bool:
        message.attempts += 1
        return message.attempts < self._plan.retry_max_attempts

    def _letter(self, message: Message, result: Result, rule: Rule) -> Letter:
        reason = rule.reason or "retries-exhausted"
        if rule.verdict is Verdict.FAILURE_STORE:
            _, index, _ = self._settling.target(message)
            detail = f"Elasticsearch says why in the failure store: GET {index}::failures/_search"
        else:
            detail = _blanked(result.reason, [message])
        return Letter(message, reason, detail, result.status, result.error_type)

    def _crowded(
        self,
        again: Batch,
        sent_at: float,
        share: float,
        reason: Callable[[], str],
        *,
        probe: bool,
        retry_after_seconds: float = 0.0,
    ) -> None:
        """Slow down, since there was no room for `again`; where there is none for anything for long, hold."""
        self._throttle(sent_at, share, retry_after_seconds)
        if share >= 1.0 and self._pacing.crowded_out(self._now()):
            self._account.retries["throttled"] += len(again.messages)
            self._hold("429", reason(), probe=probe, retry_after_seconds=retry_after_seconds)
            again.ready_at = 0.0
            self._put_again(again)
        else:
            self._go_again(again, "throttled")

    def _throttle(self, sent_at: float, share: float, retry_after_seconds: float = 0.0) -> None:
        if self._pacing.throttled(self._now(), sent_at, self._dice.random(), share, retry_after_seconds):
            now = self._now()
            if now >= self._throttled_silent_until:  # a line for a spell of it, not one for each request
                self._throttled_silent_until = now + _THROTTLED_LOG_SECONDS
                self._log.info(self._plan.far.throttled, limit=int(self._pacing.limit), share=round(share, 2))

    def _go_again(self, batch: Batch, reason: str) -> None:
        """Send a batch again after a backoff of its own."""
        batch.tries += 1
        plan = self._plan
        pause = backoff_seconds(
            batch.tries, self._dice.random(), plan.retry_delay_min_seconds, plan.retry_delay_max_seconds
        )
        batch.ready_at = self._now() + pause
        self._account.retries[reason] += len(batch.messages)
        self._put_again(batch)

    def _put_again(self, batch: Batch, *, first: bool = False) -> None:
        """Put a batch back, but for those of its messages whose epoch ended while it was away."""
        gone = [message for message in batch.messages if message.ledger.closed]
        if gone:
            batch = batch.again([message for message in batch.messages if not message.ledger.closed])
        if batch.messages:
            self._outbox.put_again(batch, first=first)
        self._settling.drop(gone)

    def _refused(self, batch: Batch, answer: Answer, sent_at: float, *, probe: bool) -> None:
        """Deal with a request that was answered as a whole."""
        fault = bulk.fault(answer.status, answer.body, answer.location)
        course = judge_request(fault)
        for message in batch.messages:
            message.unanswered = True  # bodies are taken in pieces: what came before the fault may be stored
        if course is Course.UNKNOWN:
            why = fault.error_type or _blanked(fault.reason, batch.messages)
            reason = f"Elasticsearch answered {fault.status}: {why}"
            self.unanswered(batch, reason, probe=probe, retry_after_seconds=answer.retry_after_seconds)
            return
        self._account.requests[course.name.lower()] += 1
        if course is Course.THROTTLED:
            pause = answer.retry_after_seconds
            self._crowded(batch, sent_at, 1.0, partial(_told, fault, batch), probe=probe, retry_after_seconds=pause)
        elif course is Course.SPLIT_SIZE:
            self._split_size(batch, fault, probe=probe)
        elif course is Course.SPLIT_FAULT:
            self._split_fault(batch, fault, probe=probe)
        else:
            self._hold(f"{fault.status} {fault.error_type}", _told(fault, batch), probe=probe)
            self._put_again(batch)

    def _split_size(self, batch: Batch, fault: Fault, *, probe: bool) -> None:
        if len(batch.messages) == 1:
            detail = f"Elasticsearch refuses a request of {batch.body_bytes} bytes that holds nothing but this document"
            letter = Letter(batch.messages[0], "too-large", detail, fault.status, fault.error_type)
            if self._may_leave(batch, letter, probe=probe):
                self._heard()
                self._settling.reject([letter])
            return
        self._heard()
        self._outbox.max_bytes = max(1, min(self._outbox.max_bytes, batch.body_bytes // 2))
        self._split(batch, "too_large")

    def _split_fault(self, batch: Batch, fault: Fault, *, probe: bool) -> None:
        """Narrow down which item makes Elasticsearch refuse a request.

        An item is blamed only when it failed alone and another request succeeded that was sent since the first refusal:
        otherwise a fault of ours that fails every request would empty the queue into the dead letters. (Those that were
        on their way when it began may still succeed, and say nothing.)
        """
        if batch.suspected_at < 0:
            batch.suspected_at = self._now()
        if len(batch.messages) > 1:
            self._split(batch, "refused")
            return
        (message,) = batch.messages
        detail = _blanked(fault.reason, [message])
        if self._succeeded_sent_at >= self._suspects.since(message, batch.suspected_at):
            letter = Letter(message, "rejected", detail, fault.status, fault.error_type)
            if self._may_leave(batch, letter, probe=probe):
                self._heard()
                self._settling.reject([letter])
        else:
            kind = f"{fault.status} {fault.error_type}"
            self._hold(kind, f"{kind}: {detail}", probe=probe)
            self._put_again(batch)

    def _split(self, batch: Batch, reason: str) -> None:
        self._account.splits[reason] += 1
        # Halves of a refused request go first, depth before breadth: the item at fault is found, or a fault of ours
        # noticed, after log₂ of its items. Breadth first, a fault that fails every request would cost one an item.
        first = reason == "refused"
        for half in reversed(batch.halves()) if first else batch.halves():
            half.ready_at = 0.0
            self._put_again(half, first=first)

    def unanswered(self, batch: Batch, reason: str, *, probe: bool, retry_after_seconds: float = 0.0) -> None:
        """Deal with a request whose outcome is unknown: the same items go again when a probe was answered."""
        self._account.requests["unanswered"] += 1
        for message in batch.messages:
            message.unanswered = True
        if not probe:
            batch.unanswered += 1
        self._hold("unanswered", reason, probe=probe, retry_after_seconds=retry_after_seconds)
        batch.ready_at = 0.0
        # A probe that fails says that the outage goes on: it counts against nobody.
        suspect = not probe and batch.unanswered > 1
        if suspect and len(batch.messages) == 1 and not self._may_try_again(batch.messages[0]):
            letter = Letter(batch.messages[0], "retries-exhausted", reason)
            if self._may_leave(batch, letter, probe=probe):
                self._settling.reject([letter])
            return
        self._account.retries["unanswered"] += len(batch.messages)
        if suspect and len(batch.messages) > 1:
            # Probes passed since, and the same items fail again: there may be one that nobody survives.
            self._split(batch, "unanswered")
        else:
            self._put_again(batch)

    def unsent(self, batch: Batch, kind: str, reason: str, *, probe: bool) -> None:
        """Deal with a batch that couldn't even be sent: a hold, and no word against any of its messages.

        Args:
            batch: what would have been sent.
            kind: of the reason.
            reason: for people.
            probe: whether it was to find out whether a hold is over.
        """
        self._account.requests["hold"] += 1
        self._hold(kind, reason, probe=probe)
        batch.ready_at = 0.0
        self._put_again(batch)

    def hold(self, kind: str, reason: str) -> None:
        """Send nothing but probes from now on, for something that no answer has told.

        Args:
            kind: of the reason.
            reason: for people.
        """
        self._hold(kind, reason, probe=False)

    def _hold(self, kind: str, reason: str, *, probe: bool, retry_after_seconds: float = 0.0) -> None:
        news = self._pacing.hold(
            self._now(),
            reason,
            self._dice.random(),
            was_probe=probe,
            kind=kind,
            retry_after_seconds=retry_after_seconds,
        )
        if news:
            self._log.warning(self._plan.far.held, reason=reason)
            self._hold_changed()
            self._settling.write_acks()

    def _store(self, messages: list[Message]) -> None:
        self._guard.stored()
        self._waiting_in_a_row = 0
        self._settling.store(messages)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
