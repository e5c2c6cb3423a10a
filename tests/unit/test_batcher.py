"""`sidecar.core.batcher`."""

from __future__ import annotations

from sidecar.core.batcher import Batcher, keep_live
from tests.builders import batch, ledger, message, messages, tags

AGE = 1.0


def test_a_batch_is_exactly_as_long_as_it_may_be() -> None:
    """2,500 messages at once: two full batches, and 500 that wait for more."""
    batcher = Batcher(1000, 1 << 20, AGE)
    complete = batcher.add(messages(2500), now=0.0)
    assert [(len(one.messages), one.trigger, one.mendable) for one in complete] == [(1000, "count", False)] * 2
    assert (batcher.items, batcher.open_groups) == (500, 1)


def test_completion_looks_across_chunks() -> None:
    """A group grows by chunks; order and size are those of the stream."""
    batcher = Batcher(3, 1 << 20, AGE)
    held = messages(4)
    assert batcher.add(held[:2], now=0.0) == []
    (complete,) = batcher.add(held[2:], now=0.5)
    assert complete.messages == held[:3]
    assert (complete.body_bytes, complete.opened_at) == (30, 0.0)


def test_the_timer_is_not_rearmed_by_every_message() -> None:
    """An age limit, not an idle timer: a trickle must not keep the first item waiting for ever."""
    batcher = Batcher(1000, 1 << 20, AGE)
    for tenth, one in enumerate(messages(9)):
        batcher.add([one], now=tenth / 10)
        assert batcher.due() == AGE
    assert batcher.take_aged(0.999) == []
    (complete,) = batcher.take_aged(1.0)
    assert (len(complete.messages), complete.trigger, complete.mendable) == (9, "age", True)
    assert batcher.due() is None


def test_the_clock_starts_again_with_the_first_item_of_the_next_group() -> None:
    """What overflows into a new group at 0.6 comes of age at 1.6."""
    batcher = Batcher(2, 1 << 20, AGE)
    held = messages(3)
    batcher.add(held[:1], now=0.0)
    batcher.add(held[1:], now=0.6)
    assert batcher.due() == 1.6
    assert batcher.take_aged(1.5) == []


def test_bytes_complete_a_group_before_the_item_that_does_not_fit() -> None:
    """The limit is not exceeded, and the item opens the next group."""
    batcher = Batcher(1000, 25, AGE)
    held = messages(3, size=10)
    (complete,) = batcher.add(held, now=0.0)
    assert (tags(complete.messages), complete.body_bytes, complete.trigger) == ([1, 2], 20, "bytes")
    assert complete.mendable is False
    assert batcher.items == 1


def test_an_item_larger_than_the_limit_goes_alone() -> None:
    """Otherwise it would go never; its neighbours are not held up by it."""
    batcher = Batcher(1000, 25, AGE)
    of = ledger()
    held = [message(1, b"x" * 4, of=of), message(2, b"x" * 99, of=of), message(3, b"x" * 4, of=of)]
    complete = batcher.add(held, now=0.0)
    assert [tags(one.messages) for one in complete] == [[1], [2]]
    assert complete[1].body_bytes == 100


def test_action_lines_and_line_breaks_count() -> None:
    """The limit is one of the request, not of the documents."""
    batcher = Batcher(1000, 20, AGE)
    one, two = message(1, b"{}"), message(2, b"{}")
    for held in (one, two):
        held.line = b'{"i":{}}\n'
    assert batcher.add([one], now=0.0) == []
    assert len(batcher.add([two], now=0.0)) == 1


def test_each_correlation_has_a_group_and_a_clock_of_its_own() -> None:
    """Groups complete independently, the oldest first."""
    batcher = Batcher(2, 1 << 20, AGE)
    a, b, c, d = messages(4)
    batcher.add([a], now=0.0, correlation=b"a")
    batcher.add([b], now=0.1, correlation=b"b")
    batcher.add([c], now=0.2, correlation=b"c")
    (complete,) = batcher.add([d], now=0.3, correlation=b"b")
    assert complete.messages == [b, d]
    assert [tags(one.messages) for one in batcher.take_aged(1.1)] == [[1]]
    assert batcher.due() == 1.2


def test_pressure_takes_the_oldest_group_only() -> None:
    """999 hot documents and a batch size of 1,000: what can't be completed any more is sent."""
    batcher = Batcher(1000, 1 << 20, AGE)
    a, b = messages(2)
    batcher.add([a], now=0.0, correlation=b"a")
    batcher.add([b], now=0.1, correlation=b"b")
    (oldest,) = batcher.take_oldest()
    assert (oldest.messages, oldest.trigger, oldest.mendable) == ([a], "pressure", True)
    assert batcher.open_groups == 1


def test_drain_takes_all_oldest_first() -> None:
    """No more messages will be read."""
    batcher = Batcher(1000, 1 << 20, AGE)
    for at, one in enumerate(messages(3)):
        batcher.add([one], now=float(at), correlation=b"%d" % at)
    assert [(tags(one.messages), one.trigger) for one in batcher.take_all()] == [
        ([1], "drain"), ([2], "drain"), ([3], "drain"),
    ]  # fmt: skip
    assert (batcher.take_all(), batcher.take_oldest(), batcher.due()) == ([], [], None)


def test_messages_of_a_dead_epoch_are_dropped() -> None:
    """The broker has them again; groups that lose all have no clock any more."""
    batcher = Batcher(1000, 1 << 20, AGE)
    dead, live = ledger(), ledger()
    lost = messages(2, of=dead)
    kept = messages(1, of=live)
    batcher.add([lost[0], *kept], now=0.0, correlation=b"a")
    batcher.add([lost[1]], now=0.1, correlation=b"b")
    dead.close()
    assert batcher.drop_closed() == lost
    assert batcher.open_groups == 1
    (rest,) = batcher.take_all()
    assert (rest.messages, rest.body_bytes) == (kept, 10)


def test_adding_nothing_opens_no_group() -> None:
    """An empty group would have a clock and never complete."""
    batcher = Batcher(1000, 1 << 20, AGE)
    assert batcher.add([], now=0.0) == []
    assert (batcher.open_groups, batcher.due()) == (0, None)


def test_going_again_keeps_what_was_seen() -> None:
    """Tries, suspicion and age travel with the items; a set that was complete may be joined from now on."""
    one = batch(messages(4), opened_at=3.0, ready_at=5.0)
    one.trigger, one.tries, one.unanswered, one.suspected_at = "count", 2, 1, 7
    rest = one.again(one.messages[1:3])
    assert (tags(rest.messages), rest.body_bytes) == ([2, 3], 20)
    assert (rest.opened_at, rest.ready_at, rest.trigger, rest.tries) == (3.0, 5.0, "count", 2)
    assert (rest.unanswered, rest.suspected_at, rest.mendable) == (1, 7, True)


def test_halves_are_the_whole_in_order() -> None:
    """Of an odd number the second half has one more; neither is empty."""
    first, second = batch(messages(5)).halves()
    assert (tags(first.messages), tags(second.messages)) == ([1, 2], [3, 4, 5])


def test_what_failed_as_a_whole_is_suspect() -> None:
    """It must not take others down with it."""
    fresh, unanswered, refused = batch(messages(2)), batch(messages(2)), batch(messages(2))
    unanswered.unanswered, refused.suspected_at = 1, 0
    assert (fresh.suspect, unanswered.suspect, refused.suspect) == (False, True, True)


def test_keep_live_leaves_a_live_batch_as_it_is() -> None:
    """Nothing is copied or measured again where nothing died."""
    one = batch(held := messages(2))
    assert keep_live(one) == []
    assert one.messages is held
