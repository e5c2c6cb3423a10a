"""`sidecar.core.scheduling.batcher`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.core.encoding.correlation import Correlation
from sidecar.core.scheduling.batcher import Batch, Batcher, drop_stale
from tests.builders import batch, ledger, message, messages, tags

if TYPE_CHECKING:
    from sidecar.core.ledger import Ledger
    from sidecar.core.message import Message

AGE = 1.0


def test_a_batch_is_exactly_as_long_as_it_may_be() -> None:
    """2,500 messages at once: two full batches, and 500 that wait for more."""
    batcher = Batcher(1000, 1 << 20, AGE)
    complete = batcher.add(messages(2500), now=0.0)
    assert [(len(one.messages), one.trigger, one.mergeable) for one in complete] == [(1000, "count", False)] * 2
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
        assert batcher.next_deadline() == AGE
    assert batcher.take_expired(0.999) == []
    (complete,) = batcher.take_expired(1.0)
    assert (len(complete.messages), complete.trigger, complete.mergeable) == (9, "age", True)
    assert batcher.next_deadline() is None


def test_the_clock_starts_again_with_the_first_item_of_the_next_group() -> None:
    """What overflows into a new group at 0.6 comes of age at 1.6."""
    batcher = Batcher(2, 1 << 20, AGE)
    held = messages(3)
    batcher.add(held[:1], now=0.0)
    batcher.add(held[1:], now=0.6)
    assert batcher.next_deadline() == 1.6
    assert batcher.take_expired(1.5) == []


def test_bytes_complete_a_group_before_the_item_that_does_not_fit() -> None:
    """The limit is not exceeded, and the item opens the next group."""
    batcher = Batcher(1000, 25, AGE)
    held = messages(3, size=10)
    (complete,) = batcher.add(held, now=0.0)
    assert (tags(complete.messages), complete.body_bytes, complete.trigger) == ([1, 2], 20, "bytes")
    assert complete.mergeable is False
    assert batcher.items == 1


def test_items_that_fill_a_request_to_the_byte_fit() -> None:
    """The limit is what may be, not what may not."""
    batcher = Batcher(1000, 30, AGE)
    assert batcher.add(messages(3), now=0.0) == []
    (complete,) = batcher.add(messages(1), now=0.0)
    assert (len(complete.messages), complete.body_bytes, complete.trigger) == (3, 30, "bytes")
    (complete,) = Batcher(1000, 30, AGE).add(messages(4), now=0.0)
    assert (len(complete.messages), complete.body_bytes, complete.trigger) == (3, 30, "bytes")


def test_a_new_batch_was_never_sent() -> None:
    """No pause, no try, no suspicion; and it says that it is open."""
    one = Batch([], 0, 5.0)
    assert (one.tries, one.ready_at, one.times_unanswered, one.is_suspect, one.trigger) == (0, 0.0, 0, False, None)
    assert repr(one) == "<Batch of 0, open, tries 0>"
    one.trigger = "age"
    assert repr(one) == "<Batch of 0, age, tries 0>"


def test_what_is_too_large_by_itself_waits_for_its_age_like_any_other() -> None:
    """What comes next may be as large: nothing is known before."""
    batcher = Batcher(1000, 30, AGE)
    assert batcher.add(messages(1, size=99), now=0.0) == []
    assert batcher.next_deadline() == AGE


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
        held.action_line = b'{"i":{}}\n'
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
    assert [tags(one.messages) for one in batcher.take_expired(1.1)] == [[1]]
    assert batcher.next_deadline() == 1.2


def test_pressure_takes_the_oldest_group_only() -> None:
    """999 hot documents and a batch size of 1,000: what can't be completed any more is sent."""
    batcher = Batcher(1000, 1 << 20, AGE)
    a, b = messages(2)
    batcher.add([a], now=0.0, correlation=b"a")
    batcher.add([b], now=0.1, correlation=b"b")
    (oldest,) = batcher.take_oldest()
    assert (oldest.messages, oldest.trigger, oldest.mergeable) == ([a], "pressure", True)
    assert batcher.open_groups == 1


def test_drain_takes_all_oldest_first() -> None:
    """No more messages will be read."""
    batcher = Batcher(1000, 1 << 20, AGE)
    for at, one in enumerate(messages(3)):
        batcher.add([one], now=float(at), correlation=b"%d" % at)
    assert [(tags(one.messages), one.trigger) for one in batcher.take_all()] == [
        ([1], "drain"), ([2], "drain"), ([3], "drain"),
    ]  # fmt: skip
    assert (batcher.take_all(), batcher.take_oldest(), batcher.next_deadline()) == ([], [], None)


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
    assert (batcher.open_groups, batcher.next_deadline()) == (0, None)


def test_going_again_keeps_what_was_seen() -> None:
    """Tries, suspicion and age travel with the items; a set that was complete may be joined from now on."""
    one = batch(messages(4), opened_at=3.0, ready_at=5.0)
    one.trigger, one.tries, one.times_unanswered, one.suspect_since = "count", 2, 1, 7
    rest = one.subset(one.messages[1:3])
    assert (tags(rest.messages), rest.body_bytes) == ([2, 3], 20)
    assert (rest.opened_at, rest.ready_at, rest.trigger, rest.tries) == (3.0, 5.0, "count", 2)
    assert (rest.times_unanswered, rest.suspect_since, rest.mergeable) == (1, 7, True)


def test_halves_are_the_whole_in_order() -> None:
    """Of an odd number the second half has one more; neither is empty."""
    first, second = batch(messages(5)).halves()
    assert (tags(first.messages), tags(second.messages)) == ([1, 2], [3, 4, 5])


def test_what_failed_as_a_whole_is_suspect() -> None:
    """It must not take others down with it."""
    fresh, unanswered, refused = batch(messages(2)), batch(messages(2)), batch(messages(2))
    unanswered.times_unanswered, refused.suspect_since = 1, 0
    assert (fresh.is_suspect, unanswered.is_suspect, refused.is_suspect) == (False, True, True)


def test_keep_live_leaves_a_live_batch_as_it_is() -> None:
    """Nothing is copied or measured again where nothing died."""
    one = batch(held := messages(2))
    assert drop_stale(one) == []
    assert one.messages is held


def test_a_delete_takes_its_line_only() -> None:
    """It has no document, and no line break behind one."""
    held = messages(3)
    for one in held:
        one.action_line, one.source = b"x" * 10, None
    (complete,) = Batcher(3, 1 << 20, AGE).add(held, now=0.0)
    assert complete.body_bytes == 30


# Messages that say by themselves where they belong -------------------------------------------------------------------


def said(tag: int, key: bytes = b"", *, of: Ledger, size: int = 10, **says: Any) -> Message:
    """Return a message that says which group it belongs to."""
    one = message(tag, b"x" * (size - 1), of=of)
    one.correlation = Correlation(key, **says)
    if one.correlation.is_signal:
        one.source = None
    return one


def told(complete: list[Batch]) -> list[tuple[list[int], str | None, bool]]:
    """Return what there is to know of batches."""
    return [(tags(one.messages), one.trigger, one.mergeable) for one in complete]


def test_each_key_has_one_open_group_whatever_interleaves() -> None:
    """They complete independently, in the order in which they are complete."""
    batcher, of = Batcher(3, 1 << 20, AGE), ledger()
    keys = [b"a", b"b", b"a", b"b", b"b", b"a", b"a"]
    complete = batcher.add_correlated([said(tag, key, of=of) for tag, key in enumerate(keys, 1)], now=0.0)
    assert told(complete) == [([2, 4, 5], "count", False), ([1, 3, 6], "count", False)]
    assert (batcher.items, batcher.open_groups) == (1, 1)


def test_a_message_may_complete_its_group_and_no_other() -> None:
    """It is the last one of it."""
    batcher, of = Batcher(100, 1 << 20, AGE), ledger()
    held = [said(1, b"a", of=of), said(2, b"b", of=of), said(3, b"a", of=of, completes=True), said(4, b"a", of=of)]
    assert told(batcher.add_correlated(held, now=0.0)) == [([1, 3], "message", False)]
    assert batcher.open_groups == 2


def test_a_signal_completes_its_group_and_is_in_no_batch() -> None:
    """What came before it, even in the same chunk; without an open group it does nothing."""
    batcher, of = Batcher(100, 1 << 20, AGE), ledger()
    signal = {"completes": True, "is_signal": True}
    held = [said(1, b"b", of=of, **signal), said(2, b"a", of=of), said(3, b"a", of=of, **signal), said(4, b"a", of=of)]
    assert told(batcher.add_correlated(held, now=0.0)) == [([2], "message", False)]
    assert (batcher.items, batcher.open_groups) == (1, 1)


def test_a_set_is_complete_when_all_are_there() -> None:
    """Not before, though it has more items than a batch has otherwise; the size may be told by one of them only."""
    batcher, of = Batcher(3, 1 << 20, AGE), ledger()
    held = [said(tag, b"a", of=of, expected_items=5 if tag == 2 else 0) for tag in range(1, 7)]
    assert told(batcher.add_correlated(held, now=0.0)) == [([1, 2, 3, 4, 5], "complete", False)]
    assert batcher.items == 1, "what comes late opens a new group"


def test_of_a_sets_size_the_latest_word_counts() -> None:
    """Whoever fills the set may learn on the way how large it is."""
    batcher, of = Batcher(100, 1 << 20, AGE), ledger()
    held = [said(tag, of=of, expected_items=size) for tag, size in enumerate([9, 9, 4, 2], 1)]
    assert told(batcher.add_correlated(held, now=0.0)) == [([1, 2, 3, 4], "complete", False)]


def test_a_set_too_large_for_a_request_goes_in_several_and_is_counted_as_one() -> None:
    """Its rest doesn't wait for as many messages again."""
    batcher, of = Batcher(100, 35, AGE), ledger()
    complete = batcher.add_correlated([said(tag, of=of, expected_items=8) for tag in range(1, 10)], now=0.0)
    assert told(complete) == [([1, 2, 3], "bytes", False), ([4, 5, 6], "bytes", False), ([7, 8], "complete", False)]
    assert batcher.items == 1


def test_an_item_larger_than_the_limit_goes_alone_there_too() -> None:
    """The first of a group always fits."""
    batcher, of = Batcher(100, 35, AGE), ledger()
    held = [said(1, of=of), said(2, of=of, size=99), said(3, of=of)]
    assert told(batcher.add_correlated(held, now=0.0)) == [([1], "bytes", False), ([2], "bytes", False)]
    assert batcher.items == 1


def test_open_groups_are_bounded_in_number() -> None:
    """The oldest go first, cut short, and half of them at once: they may share a request."""
    batcher, of = Batcher(100, 1 << 20, AGE, max_groups=6), ledger()
    held = [said(tag, b"%d" % tag, of=of) for tag in range(1, 8)]
    assert told(batcher.add_correlated(held, now=0.0)) == [([tag], "pressure", True) for tag in (1, 2, 3)]
    assert batcher.open_groups == 4


def test_pressure_takes_no_more_groups_than_fit_into_a_request() -> None:
    """By items and by bytes, but always one."""
    for max_items, max_bytes, taken in ((2, 1 << 20, 2), (100, 35, 3), (1, 1 << 20, 1), (100, 5, 1)):
        batcher, of = Batcher(max_items, 1 << 20, AGE), ledger()
        batcher.add_correlated([said(tag, b"%d" % tag, of=of, expected_items=9) for tag in range(1, 11)], now=0.0)
        batcher._max_bytes = max_bytes
        assert len(batcher.take_oldest()) == taken


def test_a_group_comes_of_age_whatever_it_waits_for() -> None:
    """A set of which one message was lost doesn't hold up the others."""
    batcher, of = Batcher(100, 1 << 20, AGE), ledger()
    batcher.add_correlated([said(1, b"a", of=of, expected_items=9)], now=0.0)
    batcher.add_correlated([said(2, b"b", of=of), said(3, b"a", of=of)], now=0.5)
    assert told(batcher.take_expired(1.0)) == [([1, 3], "age", True)]
    assert batcher.next_deadline() == 1.5


def test_a_group_of_a_dead_epoch_is_forgotten_with_what_was_told_of_it() -> None:
    """The broker has its messages again, and counts anew."""
    batcher, old, new = Batcher(100, 1 << 20, AGE), ledger(), ledger()
    batcher.add_correlated([said(tag, of=old, expected_items=3) for tag in (1, 2)], now=0.0)
    old.close()
    assert len(batcher.drop_closed()) == 2
    assert told(batcher.add_correlated([said(tag, of=new, expected_items=3) for tag in (1, 2)], now=0.0)) == []
    assert batcher.items == 2


def test_what_was_complete_before_there_were_too_many_groups_is_not_lost() -> None:
    """One chunk may complete a group and open one too many."""
    batcher, of = Batcher(100, 1 << 20, AGE, max_groups=2), ledger()
    held = [said(1, b"a", of=of, completes=True), *(said(tag, b"%d" % tag, of=of) for tag in (2, 3, 4))]
    assert told(batcher.add_correlated(held, now=0.0)) == [([1], "message", False), ([2], "pressure", True)]


def test_a_group_holds_bytes_to_the_last_one() -> None:
    """From its first item on, and again after it was full."""
    batcher, of = Batcher(100, 30, AGE), ledger()
    complete = batcher.add_correlated([said(tag, of=of) for tag in range(1, 8)], now=0.0)
    assert [(tags(one.messages), one.body_bytes) for one in complete] == [([1, 2, 3], 30), ([4, 5, 6], 30)]


def test_the_rest_of_a_set_remembers_its_size_and_has_a_clock() -> None:
    """Though only the first of its messages told."""
    batcher, of = Batcher(100, 35, AGE), ledger()
    held = [said(tag, of=of, expected_items=5 if tag == 1 else 0) for tag in range(1, 6)]
    (first,) = batcher.add_correlated(held[:4], now=0.0)
    assert tags(first.messages) == [1, 2, 3]
    assert batcher.next_deadline() == AGE
    assert told(batcher.add_correlated(held[4:], now=0.5)) == [([4, 5], "complete", False)]


def test_pressure_takes_the_older_half_to_the_last_byte() -> None:
    """Of three groups one, of four two, and three of six where they fill a request exactly."""
    for count, max_bytes, taken in ((3, 1 << 20, 1), (4, 1 << 20, 2), (6, 30, 3)):
        batcher, of = Batcher(100, max_bytes, AGE), ledger()
        batcher.add_correlated([said(tag, b"%d" % tag, of=of) for tag in range(1, count + 1)], now=0.0)
        assert len(batcher.take_oldest()) == taken
