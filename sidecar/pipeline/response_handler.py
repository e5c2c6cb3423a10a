"""What an answer means: each result for its own message, and each refusal for the requests to come.

The table is in `core.results.policy`; here it is applied: attempts are counted, batches go again, are split or wait,
and a hold begins where nothing succeeds any more.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from sidecar.core.flow.limiter import backoff_seconds
from sidecar.core.flow.reject_guard import kind_of
from sidecar.core.results import bulk
from sidecar.core.results.policy import (
    OUTCOMES,
    Disposition,
    RequestOutcome,
    ResultClass,
    Rule,
    classify_item,
    classify_request,
    decide,
    decide_undelayed,
)
from sidecar.core.results.suspects import Suspects
from sidecar.core.wire.properties import published_at
from sidecar.core.wire.republish import Failure, delay_rounds, delay_seconds, may_be_own_write, may_delay, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.message import Message
    from sidecar.core.results.bulk import Fault, Result
    from sidecar.core.scheduling.batcher import Batch
    from sidecar.pipeline.config import PipelineConfig
    from sidecar.pipeline.work import Workplace
    from sidecar.ports import Answer

OK = 200
BLOCKED_GUARD = 1000  # messages in a row that no target takes, before everything waits
_THROTTLED_LOG_SECONDS = 10.0
_TARGET_VERDICTS = frozenset({ResultClass.TARGET_BLOCKED, ResultClass.TARGET_MISSING, ResultClass.UNROUTABLE})
_IN_PLACE = frozenset({Disposition.RETRY, Disposition.RETRY_UNTIL_ROUTABLE})


class _Disposed(NamedTuple):
    """The messages of one answer, by what happens to them next; of the stored ones, those in a failure store.

    Attributes:
        blocked: of those that are retried in place beside others, because their target accepts nothing.
        why_waiting: of those that wait for their target.
    """

    stored: list[Message]
    in_failure_store: list[Failure]
    throttled: list[Message]
    later: list[Message]
    blocked: list[Message]
    waiting: list[Message]
    why_waiting: list[Failure]
    delayed: list[Failure]
    failures: list[Failure]


def _first(batch: Batch, results: list[Result], verdicts: frozenset[ResultClass]) -> tuple[Message, Result]:
    """Return the first message whose result has one of the verdicts, and that result."""
    pairs = zip(batch.messages, results, strict=True)
    return next(pair for pair in pairs if classify_item(pair[1], "").result_class in verdicts)


def _redacted(reason: str, messages: list[Message]) -> str:
    """Return a reason without what it quotes from one of the messages."""
    return bulk.redact(reason, b"\n".join(message.source or message.body for message in messages))


def _describe_item(message: Message, result: Result) -> str:
    """Return why a message's item was refused, without what that quotes from the message."""
    status = f"{result.status} " if result.status else ""
    return f"{status}{result.error_type}: {_redacted(result.reason, [message])}"


def _describe_request(fault: Fault, batch: Batch) -> str:
    """Return why a whole request was refused, without what that quotes from its messages."""
    return str(fault._replace(reason=_redacted(fault.reason, batch.messages)))


class ResponseHandler:
    """Draws the conclusions from answers.

    Args:
        config: what to do.
        place: where the conclusions take effect.
    """

    def __init__(self, config: PipelineConfig, place: Workplace) -> None:
        self._config = config
        self._settler = place.settling
        self._send_queue = place.send_queue
        self._limiter = place.limiter
        self._counters = place.counters
        self._hold_changed = place.hold_changed
        self._exhausted = place.starved
        self._rng = place.rng
        self._log = place.log
        self._wall_clock = place.wall_clock
        self._guard = place.guard
        # Where all messages have one target and that is blocked, everything waits; where they have several, the others'
        # messages may just be rare.
        self._one_target = one_target = config.encoder_config.path_index is not None
        self._blocked_guard = BLOCKED_GUARD if one_target else 0
        # Those that wait in place take up the prefetch: when it is all theirs, no others come any more.
        self._waiting_guard = 1 if one_target else config.prefetch
        self._waiting_in_a_row = 0
        self._suspects = Suspects()
        self._succeeded_sent_at = -1.0  # when the last request left that was answered item by item
        self._throttled_silent_until = 0.0

    # Answers ---------------------------------------------------------------------------------------------------------

    def handle(self, batch: Batch, answer: Answer, sent_at: float, *, probe: bool) -> None:
        """Deal with an answer.

        Args:
            batch: what was sent.
            answer: to it.
            sent_at: when it left, in seconds of the loop's clock.
            probe: whether it was sent to find out whether Elasticsearch is back.
        """
        count = len(batch.messages)
        if answer.status == OK and bulk.all_stored(answer.body, count):
            self.on_all_stored(batch, sent_at)
            return
        results = bulk.results(answer.body, count) if answer.status == OK else None
        if results is not None:
            self.on_item_results(batch, results, sent_at, probe=probe)
        else:
            self._on_request_error(batch, answer, sent_at, probe=probe)

    def on_all_stored(self, batch: Batch, sent_at: float) -> None:
        """Deal with an answer that all was well: most of them.

        Args:
            batch: what was sent.
            sent_at: when it left, in seconds of the loop's clock.
        """
        messages = batch.messages
        self._on_sink_answered()
        self._succeeded_sent_at = max(self._succeeded_sent_at, sent_at)
        self._limiter.on_success(self._now(), sent_at, len(messages) / self._config.batch_max_items)
        self._counters.requests["stored"] += 1
        self._count_stored(messages)
        self._ack(messages)
        self._note_stored(batch, messages, sent_at)

    def _count_stored(self, messages: list[Message]) -> None:
        action = self._config.encoder_config.constant_action
        if action is not None:
            self._counters.documents[action, "success"] += len(messages)
        else:
            self._counters.documents.update((message.action, "success") for message in messages)

    def _note_stored(self, batch: Batch, stored: list[Message], sent_at: float) -> None:
        """Measure how long the first message of a request took; one for all of them, or it would cost too much."""
        now, wall = self._now(), self._wall_clock()
        since = published_at(stored[0].properties, wall)
        self._counters.end_to_end_seconds.observe(now - batch.opened_at if since is None else max(0.0, wall - since))
        self._log.debug(
            "batch.stored",
            items=len(stored),
            of=len(batch.messages),
            bytes=batch.body_bytes,
            trigger=batch.trigger,
            seconds=round(now - sent_at, 3),
        )

    def _on_sink_answered(self) -> None:
        """Note that Elasticsearch is there and speaks of our items: a hold is over."""
        if self._limiter.on_answer():
            self._log.info(self._config.far.resumed)
            self._hold_changed()

    def on_item_results(self, batch: Batch, results: list[Result], sent_at: float, *, probe: bool) -> None:
        """Map each result to its own message: the reason why this program exists.

        Args:
            batch: what was sent.
            results: of its messages, by position.
            sent_at: when it left, in seconds of the loop's clock.
            probe: whether it was sent to find out whether a hold is over.
        """
        self._succeeded_sent_at = max(self._succeeded_sent_at, sent_at)
        self._counters.requests["partial"] += 1
        fates = self._dispose(batch, results)
        failures, delayed = self._apply_reject_guard(batch, fates, results, probe=probe)
        if fates.throttled:
            share = len(fates.throttled) / len(results)
            reason = partial(_describe_item, *_first(batch, results, frozenset({ResultClass.THROTTLED})))
            crowded = batch.subset(fates.throttled)
            if fates.stored:  # there is room, only not for all at once: no reason to wait ever longer
                crowded.tries = 0
            self._on_throttled(crowded, sent_at, share, reason, probe=probe)
        else:
            self._limiter.on_success(self._now(), sent_at, len(results) / self._config.batch_max_items)
        self._retry_in_place(batch, fates)
        if fates.why_waiting and not probe:
            self._settler.failure_log.note(fates.why_waiting, "wait")
        if fates.in_failure_store:
            self._settler.failure_log.note(fates.in_failure_store, "ack")
        if fates.stored:
            self._ack(fates.stored)
            self._note_stored(batch, fates.stored, sent_at)
        if failures:
            self._settler.dead_letter(failures)
        if delayed:
            self._settler.delay(delayed)

    def _retry_in_place(self, batch: Batch, fates: _Disposed) -> None:
        for messages in (fates.later, fates.blocked, fates.waiting):
            if messages:
                again = batch.subset(messages)
                again.waits_for_target = messages is not fates.later
                self._retry_after_backoff(again, "failed")

    def _apply_reject_guard(
        self, batch: Batch, fates: _Disposed, results: list[Result], *, probe: bool
    ) -> tuple[list[Failure], list[Failure]]:
        """Hold where too much of a kind is refused, and nothing taken; return the letters that may leave yet."""
        failures, delayed = fates.failures, fates.delayed
        guarded: list[Failure] = []
        if fates.stored:
            self._guard.on_stored()
            self._waiting_in_a_row = 0
        else:
            failures, guarded = self._guard.split(fates.failures)
            delayed, kept = self._guard.split(fates.delayed, self._blocked_guard)
            guarded += kept
            self._waiting_in_a_row += len(fates.waiting)
        if guarded:
            for failure in guarded:
                failure.message.attempts -= 1  # it is the document's kind that is on trial, not this one
            self._hold_guarded(batch, guarded, probe=probe)
        elif fates.waiting and self._nothing_else_comes():
            self._hold_for_target(batch, fates, results, probe=probe)
        elif len(fates.throttled) < len(results):
            self._on_sink_answered()
        return failures, delayed

    def _nothing_else_comes(self) -> bool:
        """Whether those that wait for their targets are all that there is, as far as is known."""
        return self._waiting_in_a_row >= self._waiting_guard and (self._one_target or self._exhausted())

    def _hold_for_target(self, batch: Batch, fates: _Disposed, results: list[Result], *, probe: bool) -> None:
        """Hold until the target of what waits in place takes it: nothing else comes before that."""
        message, example = _first(batch, results, _TARGET_VERDICTS)
        reason = _redacted(example.reason, [message])
        if classify_item(example, "").result_class is not ResultClass.UNROUTABLE:
            _, index, _ = self._settler.target(message)
            reason = f"the index {index!r} accepts no documents: {example.error_type}: {reason}"
        self._hold(example.error_type, reason, probe=probe)
        again = batch.subset(list(fates.waiting))
        again.ready_at = 0.0
        self._retry(again)
        fates.waiting.clear()

    def _may_leave(self, batch: Batch, failure: Failure, *, probe: bool) -> bool:
        """Whether the only message of a batch may be rejected; hold if too many of its kind came in a row."""
        _, guarded = self._guard.split([failure])
        if guarded:
            self._hold_guarded(batch, guarded, probe=probe)
        return not guarded

    def _hold_guarded(self, batch: Batch, guarded: list[Failure], *, probe: bool) -> None:
        example = guarded[0]
        kind = kind_of(example.reason, example.error_type)
        reason = f"{self._guard.refused(example)} documents in a row were refused: {kind}: {example.detail}"
        self._hold(f"guard {kind}", reason, probe=probe)
        again = batch.subset([failure.message for failure in guarded])
        again.ready_at = 0.0
        self._retry(again)

    def _dispose(self, batch: Batch, results: list[Result]) -> _Disposed:
        fates = _Disposed([], [], [], [], [], [], [], [], [])
        outcomes = self._counters.documents
        action = self._config.encoder_config.constant_action or ""
        for message, result in zip(batch.messages, results, strict=True):
            if result.status in bulk.STORED_STATUSES and not result.failure_store:  # most, without a look at the table
                fates.stored.append(message)
                outcomes[message.action or action, "success"] += 1
                continue
            rule = classify_item(result, message.action or action)
            outcomes[message.action or action, OUTCOMES[rule.result_class]] += 1
            fate = self._decide(message, rule)
            if fate is Disposition.STORED:
                fates.stored.append(message)
                if rule.result_class is ResultClass.FAILURE_STORE:
                    fates.in_failure_store.append(self._failure(message, result, rule))
            elif fate is Disposition.THROTTLED:
                fates.throttled.append(message)
            elif fate is Disposition.RETRY:
                (fates.blocked if rule.result_class in _TARGET_VERDICTS else fates.later).append(message)
            elif fate is Disposition.RETRY_UNTIL_ROUTABLE:
                fates.waiting.append(message)
                if not batch.tries:
                    fates.why_waiting.append(self._failure(message, result, rule))
            elif fate is Disposition.DELAY:
                fates.delayed.append(self._delay(message, result, rule))
            else:
                fates.failures.append(self._failure(message, result, rule))
        return fates

    def _decide(self, message: Message, rule: Rule) -> Disposition:
        config = self._config
        attempts = message.attempts + (rule.result_class is not ResultClass.THROTTLED)
        travels = not config.encoder_config.splits or self._may_delay_part(message)
        fate = decide(
            rule,
            config.error_policy,
            may_be_own_write=may_be_own_write(message),
            may_retry=attempts < config.retry_max_attempts,
            may_delay=travels
            and may_delay(
                message, versioned=config.encoder_config.version is not None, max_rounds=config.delayed_retry_max_rounds
            ),
        )
        if fate is Disposition.DELAY and not travels:
            fate = Disposition.RETRY
        elif fate is Disposition.DELAY and self._settler.republisher.delays_refused(
            message.ledger.queue, self._delay_milliseconds(message, rule)
        ):
            room = self._settler.waiting_room
            fate = decide_undelayed(
                rule, config.error_policy, one_target=self._one_target, has_room=lambda: room.admit(message)
            )
        if (
            fate not in _IN_PLACE or rule.result_class is ResultClass.RETRYABLE
        ):  # to wait for a target counts for nothing later
            message.attempts = attempts
        return fate

    def _may_delay_part(self, part: Message) -> bool:
        """Whether a document may go round by the delay queue, which takes its whole message.

        Its neighbours are written again then: twice, where nothing in the message says which documents they are.
        """
        alone = part.split is None or part.split.count == 1
        return alone or (part.document_key is not None and self._config.encoder_config.id_mode != "generated")

    def _delay(self, message: Message, result: Result, rule: Rule) -> Failure:
        """Return the delayed copy of a message: a failure's rounds are counted, waiting for a target is not."""
        failure = self._failure(message, result, rule)
        return failure._replace(
            delay_milliseconds=self._delay_milliseconds(message, rule),
            delay_rounds=delay_rounds(message) + (rule.result_class is ResultClass.RETRYABLE),
        )

    def _delay_milliseconds(self, message: Message, rule: Rule) -> int:
        first_seconds = self._config.delayed_retry_delay_seconds
        counted = rule.result_class is ResultClass.RETRYABLE
        return milliseconds(delay_seconds(message, first_seconds, counted=counted, now=self._wall_clock()))

    def _may_retry(self, message: Message) -> bool:
        message.attempts += 1
        return message.attempts < self._config.retry_max_attempts

    def _failure(self, message: Message, result: Result, rule: Rule) -> Failure:
        reason = rule.reason or "retries-exhausted"
        if rule.result_class is ResultClass.FAILURE_STORE:
            _, index, _ = self._settler.target(message)
            detail = f"Elasticsearch says why in the failure store: GET {index}::failures/_search"
        else:
            detail = _redacted(result.reason, [message])
        return Failure(message, reason, detail, result.status, result.error_type)

    def _on_throttled(
        self,
        throttled: Batch,
        sent_at: float,
        share: float,
        reason: Callable[[], str],
        *,
        probe: bool,
        retry_after_seconds: float = 0.0,
    ) -> None:
        """Slow down, since there was no room for `throttled`; where there is none for anything for long, hold."""
        self._throttle(sent_at, share, retry_after_seconds)
        if share >= 1.0 and self._limiter.is_exhausted(self._now()):
            self._counters.retries["throttled"] += len(throttled.messages)
            self._hold("429", reason(), probe=probe, retry_after_seconds=retry_after_seconds)
            throttled.ready_at = 0.0
            self._retry(throttled)
        else:
            self._retry_after_backoff(throttled, "throttled")

    def _throttle(self, sent_at: float, share: float, retry_after_seconds: float = 0.0) -> None:
        if self._limiter.on_throttled(self._now(), sent_at, self._rng.random(), share, retry_after_seconds):
            now = self._now()
            if now >= self._throttled_silent_until:  # a line for a spell of it, not one for each request
                self._throttled_silent_until = now + _THROTTLED_LOG_SECONDS
                self._log.info(self._config.far.throttled, limit=int(self._limiter.limit), share=round(share, 2))

    def _retry_after_backoff(self, batch: Batch, reason: str) -> None:
        """Send a batch again after a backoff of its own."""
        batch.tries += 1
        config = self._config
        pause = backoff_seconds(
            batch.tries, self._rng.random(), config.retry_delay_min_seconds, config.retry_delay_max_seconds
        )
        batch.ready_at = self._now() + pause
        self._counters.retries[reason] += len(batch.messages)
        self._retry(batch)

    def _retry(self, batch: Batch, *, first: bool = False) -> None:
        """Put a batch back, but for those of its messages whose epoch ended while it was away."""
        gone = [message for message in batch.messages if message.ledger.closed]
        if gone:
            batch = batch.subset([message for message in batch.messages if not message.ledger.closed])
        if batch.messages:
            self._send_queue.put_back(batch, first=first)
        self._settler.forget(gone)

    def _on_request_error(self, batch: Batch, answer: Answer, sent_at: float, *, probe: bool) -> None:
        """Deal with a request that was answered as a whole."""
        fault = bulk.fault(answer.status, answer.body, answer.location)
        course = classify_request(fault)
        for message in batch.messages:
            message.times_unanswered = True  # bodies are taken in pieces: what came before the fault may be stored
        if course is RequestOutcome.OUTCOME_UNKNOWN:
            why = fault.error_type or _redacted(fault.reason, batch.messages)
            reason = f"Elasticsearch answered {fault.status}: {why}"
            self.on_no_response(batch, reason, probe=probe, retry_after_seconds=answer.retry_after_seconds)
            return
        self._counters.requests[course.value] += 1
        if course is RequestOutcome.THROTTLED:
            pause = answer.retry_after_seconds
            self._on_throttled(
                batch, sent_at, 1.0, partial(_describe_request, fault, batch), probe=probe, retry_after_seconds=pause
            )
        elif course is RequestOutcome.SPLIT_SIZE:
            self._split_size(batch, fault, probe=probe)
        elif course is RequestOutcome.BISECT:
            self._bisect(batch, fault, probe=probe)
        else:
            self._hold(f"{fault.status} {fault.error_type}", _describe_request(fault, batch), probe=probe)
            self._retry(batch)

    def _split_size(self, batch: Batch, fault: Fault, *, probe: bool) -> None:
        if len(batch.messages) == 1:
            detail = f"Elasticsearch refuses a request of {batch.body_bytes} bytes that holds nothing but this document"
            failure = Failure(batch.messages[0], "too-large", detail, fault.status, fault.error_type)
            if self._may_leave(batch, failure, probe=probe):
                self._on_sink_answered()
                self._settler.dead_letter([failure])
            return
        self._on_sink_answered()
        self._send_queue.max_bytes = max(1, min(self._send_queue.max_bytes, batch.body_bytes // 2))
        self._split(batch, "too_large")

    def _bisect(self, batch: Batch, fault: Fault, *, probe: bool) -> None:
        """Narrow down which item makes Elasticsearch refuse a request.

        An item is blamed only when it failed alone and another request succeeded that was sent since the first refusal:
        otherwise a fault of ours that fails every request would empty the queue into the dead letters. (Those that were
        on their way when it began may still succeed, and say nothing.)
        """
        if batch.suspect_since < 0:
            batch.suspect_since = self._now()
        if len(batch.messages) > 1:
            self._split(batch, "refused")
            return
        (message,) = batch.messages
        detail = _redacted(fault.reason, [message])
        if self._succeeded_sent_at >= self._suspects.since(message, batch.suspect_since):
            failure = Failure(message, "rejected", detail, fault.status, fault.error_type)
            if self._may_leave(batch, failure, probe=probe):
                self._on_sink_answered()
                self._settler.dead_letter([failure])
        else:
            kind = f"{fault.status} {fault.error_type}"
            self._hold(kind, f"{kind}: {detail}", probe=probe)
            self._retry(batch)

    def _split(self, batch: Batch, reason: str) -> None:
        self._counters.splits[reason] += 1
        # Halves of a refused request go first, depth before breadth: the item at fault is found, or a fault of ours
        # noticed, after log₂ of its items. Breadth first, a fault that fails every request would cost one an item.
        first = reason == "refused"
        for half in reversed(batch.halves()) if first else batch.halves():
            half.ready_at = 0.0
            self._retry(half, first=first)

    def on_no_response(self, batch: Batch, reason: str, *, probe: bool, retry_after_seconds: float = 0.0) -> None:
        """Deal with a request whose outcome is unknown: the same items go again when a probe was answered."""
        self._counters.requests["unanswered"] += 1
        for message in batch.messages:
            message.times_unanswered = True
        if not probe:
            batch.times_unanswered += 1
        self._hold("unanswered", reason, probe=probe, retry_after_seconds=retry_after_seconds)
        batch.ready_at = 0.0
        # A probe that fails says that the outage goes on: it counts against nobody.
        suspect = not probe and batch.times_unanswered > 1
        if suspect and len(batch.messages) == 1 and not self._may_retry(batch.messages[0]):
            failure = Failure(batch.messages[0], "retries-exhausted", reason)
            if self._may_leave(batch, failure, probe=probe):
                self._settler.dead_letter([failure])
            return
        self._counters.retries["unanswered"] += len(batch.messages)
        if suspect and len(batch.messages) > 1:
            # Probes passed since, and the same items fail again: there may be one that nobody survives.
            self._split(batch, "unanswered")
        else:
            self._retry(batch)

    def on_not_sent(self, batch: Batch, kind: str, reason: str, *, probe: bool) -> None:
        """Deal with a batch that couldn't even be sent: a hold, and no word against any of its messages.

        Args:
            batch: what would have been sent.
            kind: of the reason.
            reason: for people.
            probe: whether it was to find out whether a hold is over.
        """
        self._counters.requests["hold"] += 1
        self._hold(kind, reason, probe=probe)
        batch.ready_at = 0.0
        self._retry(batch)

    def hold(self, kind: str, reason: str) -> None:
        """Send nothing but probes from now on, for something that no answer has told.

        Args:
            kind: of the reason.
            reason: for people.
        """
        self._hold(kind, reason, probe=False)

    def _hold(self, kind: str, reason: str, *, probe: bool, retry_after_seconds: float = 0.0) -> None:
        news = self._limiter.hold(
            self._now(),
            reason,
            self._rng.random(),
            was_probe=probe,
            kind=kind,
            retry_after_seconds=retry_after_seconds,
        )
        if news:
            self._log.warning(self._config.far.held, reason=reason)
            self._hold_changed()
            self._settler.flush_acks()

    def _ack(self, messages: list[Message]) -> None:
        self._guard.on_stored()
        self._waiting_in_a_row = 0
        self._settler.ack(messages)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
