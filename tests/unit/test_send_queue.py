"""`sidecar.core.scheduling.send_queue`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.scheduling.send_queue import SendQueue
from tests.builders import batch, ledger, messages, tags

if TYPE_CHECKING:
    from sidecar.core.scheduling.batcher import Batch


def taken(send_queue: SendQueue, now: float = 0.0) -> list[int] | None:
    """Return the tags of the next request."""
    request = send_queue.take(now)
    return None if request is None else tags(request.messages)


def test_complete_batches_go_in_order_and_unchanged() -> None:
    """A set that is complete by count, bytes or message shares its request with nobody."""
    send_queue = SendQueue(1000, 1 << 20)
    held = messages(3)
    sets = [batch(held[:1]), batch(held[1:2]), batch(held[2:])]
    send_queue.put(sets)
    assert [send_queue.take(0.0) for _ in range(4)] == [*sets, None]


def test_what_goes_again_goes_first() -> None:
    """It has waited longest."""
    send_queue = SendQueue(2, 1 << 20)
    held = messages(4)
    send_queue.put([batch(held[2:])])
    send_queue.put_back(batch(held[:2]))
    assert (taken(send_queue), taken(send_queue)) == ([1, 2], [3, 4])


def test_a_retry_waits_for_its_backoff_and_holds_nobody_up() -> None:
    """One batch's pause is not its neighbour's."""
    send_queue = SendQueue(1000, 1 << 20)
    held = messages(3)
    send_queue.put_back(batch(held[:1], ready_at=5.0))
    assert send_queue.ready_at() == 5.0
    send_queue.put_back(batch(held[1:2], ready_at=2.0))
    send_queue.put([batch(held[2:])])
    assert send_queue.ready_at() == 0.0
    assert (taken(send_queue, 1.9), taken(send_queue, 1.9)) == ([3], None)
    assert send_queue.ready_at() == 2.0
    assert (taken(send_queue, 2.0), taken(send_queue, 4.9), taken(send_queue, 5.0)) == ([2], None, [1])
    assert send_queue.ready_at() is None


def test_small_batches_that_may_be_joined_share_a_request() -> None:
    """Those cut short by age, and retries; up to the count."""
    send_queue = SendQueue(5, 1 << 20)
    held = messages(8)
    send_queue.put_back(batch(held[:2], mergeable=True, opened_at=1.0))
    send_queue.put([batch(held[2:4], mergeable=True, opened_at=0.5), batch(held[4:6], mergeable=True)])
    send_queue.put([batch(held[6:7], mergeable=True, opened_at=2.0), batch(held[7:], mergeable=True)])
    request = send_queue.take(2.0)
    assert request is not None
    assert tags(request.messages) == [1, 2, 3, 4, 7]
    assert (request.body_bytes, request.opened_at) == (50, 0.5)
    assert taken(send_queue) == [5, 6, 8]


def test_joining_keeps_to_the_bytes() -> None:
    """The limit is one of the request."""
    send_queue = SendQueue(1000, 25)
    held = messages(3)
    send_queue.put([batch(held[:1], mergeable=True), batch(held[1:2], mergeable=True), batch(held[2:], mergeable=True)])
    assert (taken(send_queue), taken(send_queue)) == ([1, 2], [3])


def test_a_complete_set_is_not_taken_into_another_request() -> None:
    """Not even where the one that is sent may be joined."""
    send_queue = SendQueue(1000, 1 << 20)
    held = messages(3)
    send_queue.put([batch(held[:1], mergeable=True), batch(held[1:2]), batch(held[2:], mergeable=True)])
    assert [taken(send_queue) for _ in range(3)] == [[1, 3], [2], None]


def test_suspects_are_joined_with_nobody() -> None:
    """One bad item must not decide other batches: neither does a suspect take others in, nor do they take it."""
    send_queue = SendQueue(1000, 1 << 20)
    held = messages(4)
    unanswered, refused = batch(held[:1], mergeable=True), batch(held[1:2], mergeable=True)
    unanswered.times_unanswered, refused.suspect_since = 1, 3
    send_queue.put_back(unanswered)
    send_queue.put_back(batch(held[2:3], mergeable=True))
    send_queue.put_back(refused)
    send_queue.put_back(batch(held[3:], mergeable=True))
    assert [taken(send_queue) for _ in range(4)] == [[1], [3, 4], [2], None]


def test_a_batch_whose_pause_is_not_over_is_not_joined() -> None:
    """It would go too soon."""
    send_queue = SendQueue(1000, 1 << 20)
    held = messages(2)
    send_queue.put_back(batch(held[:1], mergeable=True, ready_at=9.0))
    send_queue.put([batch(held[1:], mergeable=True)])
    assert taken(send_queue, 8.0) == [2]


def test_the_joined_request_backs_off_like_its_most_refused_part() -> None:
    """Joining must not shorten anybody's pause."""
    send_queue = SendQueue(1000, 1 << 20)
    held = messages(2)
    first, second = batch(held[:1], mergeable=True), batch(held[1:], mergeable=True)
    first.tries, second.tries = 1, 4
    send_queue.put_back(first)
    send_queue.put_back(second)
    request = send_queue.take(0.0)
    assert request is not None
    assert request.tries == 4


def test_a_learned_size_splits_what_was_made_before() -> None:
    """After a 413 the limit is lower: a batch that is too large now goes in parts, its rest first in line."""
    send_queue = SendQueue(1000, 1 << 20)
    send_queue.put([batch(messages(5))])
    send_queue.max_bytes = 20
    assert [taken(send_queue) for _ in range(4)] == [[1, 2], [3, 4], [5], None]


def test_a_single_item_above_the_limit_goes_alone() -> None:
    """Whether it is too large is Elasticsearch's to say; it is never retried for ever here."""
    send_queue = SendQueue(1000, 5)
    send_queue.put([batch(messages(2))])
    assert [taken(send_queue) for _ in range(3)] == [[1], [2], None]


def test_probes_are_single_and_different_items() -> None:
    """A poison message must not make a recovered Elasticsearch look dead."""
    send_queue = SendQueue(1000, 1 << 20)
    held = messages(5)
    send_queue.put_back(batch(held[:3], ready_at=99.0))
    send_queue.put_back(batch(held[3:]))
    probes = []
    for _ in range(5):
        probe = send_queue.take_probe(0.0)
        assert probe is not None
        probes += tags(probe.messages)
    assert probes == [1, 4, 2, 5, 3]
    assert send_queue.take_probe(0.0) is None


def test_a_fresh_batch_gives_a_probe_too() -> None:
    """The rest of it is kept."""
    send_queue = SendQueue(1000, 1 << 20)
    send_queue.put([batch(messages(3))])
    probe = send_queue.take_probe(0.0)
    assert probe is not None
    assert (tags(probe.messages), send_queue.items, len(send_queue)) == ([1], 2, 1)


def test_messages_of_a_dead_epoch_are_dropped() -> None:
    """From retries and fresh batches; batches that lose all are gone."""
    send_queue = SendQueue(1000, 1 << 20)
    dead, live = ledger(), ledger()
    lost, kept = messages(3, of=dead), messages(1, of=live)
    send_queue.put([batch([lost[0], *kept]), batch([lost[1]])])
    send_queue.put_back(batch([lost[2]]))
    dead.close()
    assert sorted(tags(send_queue.drop_closed())) == [1, 2, 3]
    assert len(send_queue) == 1
    request: Batch | None = send_queue.take(0.0)
    assert request is not None
    assert (request.messages, request.body_bytes) == (kept, 10)


def test_what_is_urgent_goes_before_what_goes_again() -> None:
    """Halves of a refused request, so that the item at fault is found soon."""
    send_queue = SendQueue(1000, 1 << 20)
    held = messages(4)
    send_queue.put_back(batch(held[:1]))
    send_queue.put_back(batch(held[1:2]))
    send_queue.put_back(batch(held[2:3]), first=True)
    send_queue.put_back(batch(held[3:]), first=True)
    assert [taken(send_queue) for _ in range(4)] == [[4], [3], [1], [2]]


def test_the_rest_of_what_is_too_large_goes_before_all_others() -> None:
    """It would be overtaken otherwise by what came after it."""
    send_queue = SendQueue(1000, 1 << 20)
    held = messages(5)
    send_queue.put_back(batch(held[:3]))
    send_queue.put_back(batch(held[3:4]))
    send_queue.put_back(batch(held[4:]))
    send_queue.max_bytes = 20
    assert [taken(send_queue) for _ in range(4)] == [[1, 2], [3], [4], [5]]


def test_joining_fills_a_request_to_the_byte() -> None:
    """The limit is what may be."""
    send_queue = SendQueue(1000, 20)
    held = messages(3)
    send_queue.put([batch([one], mergeable=True) for one in held])
    assert [taken(send_queue) for _ in range(3)] == [[1, 2], [3], None]


def test_chance_chooses_the_batch_and_the_item_of_a_probe() -> None:
    """Every item that waits can be the next one, fresh or not."""
    held = messages(8)
    seen = []
    for eighth in range(8):
        send_queue = SendQueue(1000, 1 << 20)
        send_queue.put([batch(held[:2]), batch(held[2:4])])
        send_queue.put_back(batch(held[4:6]))
        send_queue.put_back(batch(held[6:]))
        probe = send_queue.take_probe(eighth / 8 + 0.01)
        assert probe is not None
        seen += tags(probe.messages)
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8]


def test_neither_a_probe_nor_what_it_leaves_behind_has_a_pause() -> None:
    """The pauses of a hold are those between its probes."""
    send_queue = SendQueue(1000, 1 << 20)
    send_queue.put_back(batch(messages(3), ready_at=99.0))
    probe = send_queue.take_probe(0.0)
    assert probe is not None
    assert (probe.ready_at, send_queue.ready_at()) == (0.0, 0.0)


def test_the_rest_of_a_probe_goes_again_behind_other_retries_and_before_new_batches() -> None:
    """In its order: the next probe is another's item, and after a hold what has waited longest goes first."""
    held = messages(6)
    for new in (True, False):
        send_queue = SendQueue(1000, 1 << 20)
        probed, others = batch(held[:3]), batch(held[3:5])
        send_queue.put([probed, others] if new else [others])
        for one in [batch(held[5:])] if new else [probed, batch(held[5:])]:
            send_queue.put_back(one)
        probe = send_queue.take_probe(0.5 / 3 if new else 1.5 / 3)
        assert probe is not None
        assert tags(probe.messages) == [2]
        assert [taken(send_queue) for _ in range(4)] == [[6], [1, 3], [4, 5], None]


def test_the_rest_of_a_probe_may_share_a_request() -> None:
    """It is no complete set any more."""
    send_queue = SendQueue(1000, 1 << 20)
    held = messages(5)
    send_queue.put([batch(held[:3]), batch(held[3:], mergeable=True)])
    assert send_queue.take_probe(0.0) is not None
    assert [taken(send_queue) for _ in range(2)] == [[2, 3, 4, 5], None]


def test_a_probe_and_the_rest_remember_what_their_batch_has_seen() -> None:
    """Its attempts, its age, and why it is a suspect; so neither is joined with others because of a hold."""
    send_queue = SendQueue(1000, 1 << 20)
    suspect = batch(messages(3), opened_at=7.0, ready_at=99.0)
    suspect.trigger, suspect.tries, suspect.times_unanswered, suspect.suspect_since = "age", 3, 2, 5.0
    send_queue.put_back(suspect)
    probe, rest = send_queue.take_probe(0.0), send_queue.take(0.0)
    assert probe is not None
    assert rest is not None
    for one, bytes_ in ((probe, 10), (rest, 20)):
        assert (one.trigger, one.tries, one.times_unanswered, one.suspect_since) == ("age", 3, 2, 5.0)
        assert (one.opened_at, one.ready_at, one.body_bytes) == (7.0, 0.0, bytes_)
    assert not send_queue
