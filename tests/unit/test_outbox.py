"""`sidecar.core.outbox`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.outbox import Outbox
from tests.builders import batch, ledger, messages, tags

if TYPE_CHECKING:
    from sidecar.core.batcher import Batch


def taken(outbox: Outbox, now: float = 0.0) -> list[int] | None:
    """Return the tags of the next request."""
    request = outbox.take(now)
    return None if request is None else tags(request.messages)


def test_complete_batches_go_in_order_and_unchanged() -> None:
    """A set that is complete by count, bytes or message shares its request with nobody."""
    outbox = Outbox(1000, 1 << 20)
    held = messages(3)
    sets = [batch(held[:1]), batch(held[1:2]), batch(held[2:])]
    outbox.put(sets)
    assert [outbox.take(0.0) for _ in range(4)] == [*sets, None]


def test_what_goes_again_goes_first() -> None:
    """It has waited longest."""
    outbox = Outbox(2, 1 << 20)
    held = messages(4)
    outbox.put([batch(held[2:])])
    outbox.put_again(batch(held[:2]))
    assert (taken(outbox), taken(outbox)) == ([1, 2], [3, 4])


def test_a_retry_waits_for_its_backoff_and_holds_nobody_up() -> None:
    """One batch's pause is not its neighbour's."""
    outbox = Outbox(1000, 1 << 20)
    held = messages(3)
    outbox.put_again(batch(held[:1], ready_at=5.0))
    assert outbox.ready_at() == 5.0
    outbox.put_again(batch(held[1:2], ready_at=2.0))
    outbox.put([batch(held[2:])])
    assert outbox.ready_at() == 0.0
    assert (taken(outbox, 1.9), taken(outbox, 1.9)) == ([3], None)
    assert outbox.ready_at() == 2.0
    assert (taken(outbox, 2.0), taken(outbox, 4.9), taken(outbox, 5.0)) == ([2], None, [1])
    assert outbox.ready_at() is None


def test_small_batches_that_may_be_joined_share_a_request() -> None:
    """Those cut short by age, and retries; up to the count."""
    outbox = Outbox(5, 1 << 20)
    held = messages(8)
    outbox.put_again(batch(held[:2], mendable=True, opened_at=1.0))
    outbox.put([batch(held[2:4], mendable=True, opened_at=0.5), batch(held[4:6], mendable=True)])
    outbox.put([batch(held[6:7], mendable=True, opened_at=2.0), batch(held[7:], mendable=True)])
    request = outbox.take(2.0)
    assert request is not None
    assert tags(request.messages) == [1, 2, 3, 4, 7]
    assert (request.body_bytes, request.opened_at) == (50, 0.5)
    assert taken(outbox) == [5, 6, 8]


def test_joining_keeps_to_the_bytes() -> None:
    """The limit is one of the request."""
    outbox = Outbox(1000, 25)
    held = messages(3)
    outbox.put([batch(held[:1], mendable=True), batch(held[1:2], mendable=True), batch(held[2:], mendable=True)])
    assert (taken(outbox), taken(outbox)) == ([1, 2], [3])


def test_a_complete_set_is_not_taken_into_another_request() -> None:
    """Not even where the one that is sent may be joined."""
    outbox = Outbox(1000, 1 << 20)
    held = messages(3)
    outbox.put([batch(held[:1], mendable=True), batch(held[1:2]), batch(held[2:], mendable=True)])
    assert [taken(outbox) for _ in range(3)] == [[1, 3], [2], None]


def test_suspects_are_joined_with_nobody() -> None:
    """One bad item must not decide other batches: neither does a suspect take others in, nor do they take it."""
    outbox = Outbox(1000, 1 << 20)
    held = messages(4)
    unanswered, refused = batch(held[:1], mendable=True), batch(held[1:2], mendable=True)
    unanswered.unanswered, refused.suspected_at = 1, 3
    outbox.put_again(unanswered)
    outbox.put_again(batch(held[2:3], mendable=True))
    outbox.put_again(refused)
    outbox.put_again(batch(held[3:], mendable=True))
    assert [taken(outbox) for _ in range(4)] == [[1], [3, 4], [2], None]


def test_a_batch_whose_pause_is_not_over_is_not_joined() -> None:
    """It would go too soon."""
    outbox = Outbox(1000, 1 << 20)
    held = messages(2)
    outbox.put_again(batch(held[:1], mendable=True, ready_at=9.0))
    outbox.put([batch(held[1:], mendable=True)])
    assert taken(outbox, 8.0) == [2]


def test_the_joined_request_backs_off_like_its_most_refused_part() -> None:
    """Joining must not shorten anybody's pause."""
    outbox = Outbox(1000, 1 << 20)
    held = messages(2)
    first, second = batch(held[:1], mendable=True), batch(held[1:], mendable=True)
    first.tries, second.tries = 1, 4
    outbox.put_again(first)
    outbox.put_again(second)
    request = outbox.take(0.0)
    assert request is not None
    assert request.tries == 4


def test_a_learned_size_splits_what_was_made_before() -> None:
    """After a 413 the limit is lower: a batch that is too large now goes in parts, its rest first in line."""
    outbox = Outbox(1000, 1 << 20)
    outbox.put([batch(messages(5))])
    outbox.max_bytes = 20
    assert [taken(outbox) for _ in range(4)] == [[1, 2], [3, 4], [5], None]


def test_a_single_item_above_the_limit_goes_alone() -> None:
    """Whether it is too large is Elasticsearch's to say; it is never retried for ever here."""
    outbox = Outbox(1000, 5)
    outbox.put([batch(messages(2))])
    assert [taken(outbox) for _ in range(3)] == [[1], [2], None]


def test_probes_are_single_and_different_items() -> None:
    """A poison message must not make a recovered Elasticsearch look dead."""
    outbox = Outbox(1000, 1 << 20)
    held = messages(5)
    outbox.put_again(batch(held[:3], ready_at=99.0))
    outbox.put_again(batch(held[3:]))
    probes = []
    for _ in range(5):
        probe = outbox.take_probe(0.0)
        assert probe is not None
        probes += tags(probe.messages)
    assert probes == [1, 4, 2, 5, 3]
    assert outbox.take_probe(0.0) is None


def test_a_fresh_batch_gives_a_probe_too() -> None:
    """The rest of it is kept."""
    outbox = Outbox(1000, 1 << 20)
    outbox.put([batch(messages(3))])
    probe = outbox.take_probe(0.0)
    assert probe is not None
    assert (tags(probe.messages), outbox.items, len(outbox)) == ([1], 2, 1)


def test_messages_of_a_dead_epoch_are_dropped() -> None:
    """From retries and fresh batches; batches that lose all are gone."""
    outbox = Outbox(1000, 1 << 20)
    dead, live = ledger(), ledger()
    lost, kept = messages(3, of=dead), messages(1, of=live)
    outbox.put([batch([lost[0], *kept]), batch([lost[1]])])
    outbox.put_again(batch([lost[2]]))
    dead.close()
    assert sorted(tags(outbox.drop_closed())) == [1, 2, 3]
    assert len(outbox) == 1
    request: Batch | None = outbox.take(0.0)
    assert request is not None
    assert (request.messages, request.body_bytes) == (kept, 10)


def test_what_is_urgent_goes_before_what_goes_again() -> None:
    """Halves of a refused request, so that the item at fault is found soon."""
    outbox = Outbox(1000, 1 << 20)
    held = messages(4)
    outbox.put_again(batch(held[:1]))
    outbox.put_again(batch(held[1:2]))
    outbox.put_again(batch(held[2:3]), first=True)
    outbox.put_again(batch(held[3:]), first=True)
    assert [taken(outbox) for _ in range(4)] == [[4], [3], [1], [2]]


def test_the_rest_of_what_is_too_large_goes_before_all_others() -> None:
    """It would be overtaken otherwise by what came after it."""
    outbox = Outbox(1000, 1 << 20)
    held = messages(5)
    outbox.put_again(batch(held[:3]))
    outbox.put_again(batch(held[3:4]))
    outbox.put_again(batch(held[4:]))
    outbox.max_bytes = 20
    assert [taken(outbox) for _ in range(4)] == [[1, 2], [3], [4], [5]]


def test_joining_fills_a_request_to_the_byte() -> None:
    """The limit is what may be."""
    outbox = Outbox(1000, 20)
    held = messages(3)
    outbox.put([batch([one], mendable=True) for one in held])
    assert [taken(outbox) for _ in range(3)] == [[1, 2], [3], None]


def test_chance_chooses_the_batch_and_the_item_of_a_probe() -> None:
    """Every item that waits can be the next one, fresh or not."""
    held = messages(8)
    seen = []
    for eighth in range(8):
        outbox = Outbox(1000, 1 << 20)
        outbox.put([batch(held[:2]), batch(held[2:4])])
        outbox.put_again(batch(held[4:6]))
        outbox.put_again(batch(held[6:]))
        probe = outbox.take_probe(eighth / 8 + 0.01)
        assert probe is not None
        seen += tags(probe.messages)
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]


def test_neither_a_probe_nor_what_it_leaves_behind_has_a_pause() -> None:
    """The pauses of a hold are those between its probes."""
    outbox = Outbox(1000, 1 << 20)
    outbox.put_again(batch(messages(3), ready_at=99.0))
    probe = outbox.take_probe(0.0)
    assert probe is not None
    assert (probe.ready_at, outbox.ready_at()) == (0.0, 0.0)
