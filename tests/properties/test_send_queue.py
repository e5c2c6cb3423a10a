"""`core.scheduling.send_queue`: requests are made of whole batches or parts of one, and a retry is what goes again."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sidecar.core.ledger import Ledger
from sidecar.core.scheduling.send_queue import SendQueue
from tests.builders import batch, examples, message, messages, tags
from tests.drawing import drew

if TYPE_CHECKING:
    from sidecar.core.scheduling.batcher import Batch

MAX_ITEMS = 6
SIZES = st.sampled_from([1, 5, 9, 10, 20, 40])
GROUPS = st.lists(
    st.tuples(st.lists(SIZES, min_size=1, max_size=MAX_ITEMS), st.sampled_from([True, True, False])),
    min_size=1,
    max_size=4,
)


class OutboxOfBatches(RuleBasedStateMachine):
    """Batches are put in, taken as requests, and go again in part; epochs end; the size limit shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.send_queue = SendQueue(MAX_ITEMS, 100)
        self.epoch = Ledger("work", 1)
        self.now = 0.0
        self.tags = self.lost = 0
        self.waiting: dict[int, Batch] = {}  # each message's tag, and the batch in which it was put in
        self.in_flight: list[Batch] = []

    def fresh(self, sizes: list[int], *, mergeable: bool) -> Batch:
        """Return a complete batch."""
        held = []
        for size in sizes:
            self.tags += 1
            held.append(message(self.tags, b"x" * (size - 1), of=self.epoch))
        return batch(held, mergeable=mergeable, opened_at=self.now)

    @initialize(groups=GROUPS)
    def begin(self, groups: list[tuple[list[int], bool]]) -> None:
        """Something waits from the beginning."""
        self.put(groups)

    @rule(groups=GROUPS)
    def put(self, groups: list[tuple[list[int], bool]]) -> None:
        """Some groups are complete."""
        made = [self.fresh(sizes, mergeable=mergeable) for sizes, mergeable in groups]
        self.send_queue.put(made)
        for one in made:
            self.note(one)

    def note(self, made: Batch) -> None:
        """Remember a batch as it was put in: joining changes it."""
        self.waiting |= dict.fromkeys(tags(made.messages), copy(made))

    def go_again(self, data: st.DataObject, pause: float) -> None:
        """A request was answered: any of its items go again, in order; sometimes as a suspect."""
        request = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        marks = data.draw(st.lists(st.booleans(), min_size=len(request.messages), max_size=len(request.messages)))
        chosen = [one for one, mark in zip(request.messages, marks, strict=True) if mark and not one.ledger.closed]
        retry = request.subset(chosen)
        drew("all go again" if all(marks) else "some go again" if any(marks) else "none goes again")
        retry.ready_at = self.now + pause
        retry.tries += 1
        if data.draw(st.sampled_from([False, False, True])):
            retry.times_unanswered += 1
        assert retry.messages == chosen
        assert retry.body_bytes == sum(one.bulk_bytes for one in chosen)
        if chosen:
            self.send_queue.put_back(retry)
            self.note(retry)

    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.5, 2.0]), pause=st.sampled_from([0.0, 1.0, 5.0, None]))
    def work(self, data: st.DataObject, seconds: float, pause: float | None) -> None:
        """Time passes, an earlier request is answered, and one more is made."""
        self.now += seconds
        if self.in_flight and pause is not None:
            self.go_again(data, pause)
        self.take()

    def take(self) -> None:
        """A request is made."""
        due = {id(held) for held in self.waiting.values() if held.ready_at <= self.now}
        request = self.send_queue.take(self.now)
        assert (request is not None) == bool(due), "what is ready goes, and nothing else does"
        drew("nothing is ready yet", request is None and self.waiting)
        if request is None:
            return
        parts = self.leave(request)
        assert all(part.ready_at <= self.now for part in parts)
        assert len(request.messages) <= MAX_ITEMS
        assert request.body_bytes <= self.send_queue.max_bytes or len(request.messages) == 1
        drew("an item over the limit", request.body_bytes > self.send_queue.max_bytes)
        drew("a batch in part", any(part.messages[-1].tag in self.waiting for part in parts))
        rest = [one for one in parts[-1].messages if one.tag in self.waiting]
        if rest:
            assert request.body_bytes + rest[0].bulk_bytes > self.send_queue.max_bytes, "a part is as long as it may be"
            drew("a part that is full to the byte", request.body_bytes == self.send_queue.max_bytes)
        drew("a retry", any(part.tries for part in parts))
        if len(parts) > 1:
            drew("several batches in one request")
            drew("a retry and a fresh batch in one request", len({bool(part.tries) for part in parts}) > 1)
            assert all(part.mergeable and not part.is_suspect for part in parts), "only what may be joined is"
            assert request.opened_at == min(part.opened_at for part in parts)
            assert request.tries == max(part.tries for part in parts)

    @rule()
    def take_all(self) -> None:
        """All that is ready goes, as when Elasticsearch keeps up; the rest waits for its pause to end."""
        while any(held.ready_at <= self.now for held in self.waiting.values()):
            self.take()
        self.take()

    @rule()
    def probe(self) -> None:
        """During a hold one item at a time is sent, whatever its pause."""
        request = self.send_queue.take_probe(0.0)
        assert (request is not None) == bool(self.waiting)
        if request is not None:
            assert len(request.messages) == 1
            self.leave(request)
            drew("a probe leaves the rest", self.waiting)
            left = [tag for tag in self.waiting if tag not in tags(request.messages)]
            assert len(left) == len(self.waiting)

    def leave(self, request: Batch) -> list[Batch]:
        """Take a request's messages out of the model; return the batches that it was made of, in order."""
        assert request.body_bytes == sum(one.bulk_bytes for one in request.messages)
        parts: list[Batch] = []
        at = 0
        while at < len(request.messages):
            part = self.waiting[request.messages[at].tag]
            live = [one for one in part.messages if one.tag in self.waiting]
            run = request.messages[at : at + len(live)]
            if len(run) == len(live):
                assert run == live, "a batch's order is kept"
            else:
                assert live[: len(run)] == run, "a part is the beginning"
                assert not parts, "a batch is only split by itself"
            parts.append(part)
            at += len(run)
            for one in run:
                del self.waiting[one.tag]
        for part in parts:  # what is left of it is ready as it was, or at once after a probe
            rest = [tag for tag, held in self.waiting.items() if held is part]
            if rest:
                remainder = part.subset([one for one in part.messages if one.tag in rest])
                remainder.ready_at = part.ready_at if len(request.messages) > 1 or part.ready_at <= self.now else 0.0
                self.waiting |= dict.fromkeys(rest, remainder)
        self.in_flight.append(request)
        return parts

    @rule(share=st.sampled_from([0.5, 0.9]))
    def learn_size(self, share: float) -> None:
        """A 413 teaches a smaller size."""
        self.send_queue.max_bytes = max(1, int(self.send_queue.max_bytes * share))

    @rule()
    def end_epoch(self) -> None:
        """The channel is lost, at times: what waits is the broker's again."""
        if self.tags < self.lost + 20:
            return
        self.lost = self.tags
        drew("an epoch ends while some wait", self.waiting)
        self.epoch.close()
        assert sorted(tags(self.send_queue.drop_closed())) == sorted(self.waiting)
        self.waiting.clear()
        self.epoch = Ledger("again", 1)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """What waits is what was put in and not taken."""
        assert self.send_queue.items == len(self.waiting)
        assert bool(self.send_queue) == bool(self.waiting)

    @invariant()
    def it_says_when_to_come_back(self) -> None:
        """Never too late."""
        ready_at = self.send_queue.ready_at()
        earliest = min((held.ready_at for held in self.waiting.values()), default=None)
        assert (ready_at is None) == (earliest is None)
        if ready_at is not None and earliest is not None:
            assert ready_at <= max(earliest, 0.0)


OutboxOfBatches.TestCase.settings = settings(max_examples=examples(80), stateful_step_count=30)
TestOutbox = pytest.mark.draws(
    "nothing is ready yet", "an item over the limit", "a batch in part", "a part that is full to the byte", "a retry",
    "several batches in one request", "a retry and a fresh batch in one request", "a probe leaves the rest",
    "all go again", "some go again", "none goes again", "an epoch ends while some wait",
)(OutboxOfBatches.TestCase)  # fmt: skip


@pytest.mark.draws("the first", "one in the middle", "the last", "of an odd number", "of an even number")
@settings(max_examples=examples(60))
@given(st.integers(2, 64), st.integers(0, 63))
def test_halving_finds_the_item_at_fault(count: int, bad: int) -> None:
    """In as many steps as halving takes; every other item is in a half that doesn't have it."""
    held = messages(count)
    fault = held[bad % count]
    place = bad % count
    drew("the first" if not place else "the last" if place == count - 1 else "one in the middle")
    drew("of an odd number" if count % 2 else "of an even number")
    request, steps, innocent = batch(held), 0, []
    while len(request.messages) > 1:
        halves = request.halves()
        assert [one for half in halves for one in half.messages] == request.messages
        steps += 1
        for half in halves:
            if fault in half.messages:
                request = half
            else:
                innocent += half.messages
    assert request.messages == [fault]
    assert sorted(tags(innocent)) == [tag for tag in tags(held) if tag != fault.tag]
    assert steps <= count.bit_length()
