"""`sidecar.core.ledger`."""

from __future__ import annotations

from sidecar.core.ledger import Settlement
from tests.builders import ledger, message, tags


def test_deliveries_open_when_they_are_admitted() -> None:
    """Tags below `next_tag` are open; admitting twice opens nothing twice."""
    book = ledger()
    book.next_tag = 4
    assert (book.open_new(), book.open_new()) == (3, 0)
    assert (book.open, book.ackable, book.outstanding) == (3, 0, 3)
    book.next_tag = 6
    assert book.open_new() == 2
    assert (book.open, book.memory_bytes) == (5, 0), "memory is counted by whoever keeps them"


def test_everything_up_to_the_first_hole_is_one_ack() -> None:
    """1 and 2 are acked by one frame; 4 waits behind 3."""
    book = ledger(delivered=4)
    assert book.mark_stored(message(tag, of=book) for tag in (1, 2, 4)) == 3
    assert book.take_acks() == [Settlement(2, multiple=True)]
    assert (book.open, book.ackable) == (1, 1)


def test_an_ack_is_never_written_twice() -> None:
    """What was collected counts as written."""
    book = ledger(delivered=2)
    book.mark_stored([message(1, of=book)])
    assert book.take_acks()
    assert book.take_acks() == []


def test_nothing_is_acked_over_an_open_delivery() -> None:
    """One bad first message holds back the multiple, not the truth."""
    book = ledger(delivered=3)
    book.mark_stored([message(2, of=book), message(3, of=book)])
    assert book.take_acks() == []
    assert book.ackable == 2


def test_closing_the_hole_releases_what_was_withheld() -> None:
    """The multiple jumps to the last tag at once."""
    book = ledger(delivered=3)
    book.mark_stored([message(2, of=book), message(3, of=book)])
    book.take_acks()
    book.mark_stored([message(1, of=book)])
    assert book.take_acks() == [Settlement(3, multiple=True)]
    assert book.outstanding == 0


def test_singly_acks_what_is_stored_behind_holes() -> None:
    """One frame each, the multiple first; the holes stay open."""
    book = ledger(delivered=6)
    book.mark_stored(message(tag, of=book) for tag in (1, 3, 5))
    assert book.take_acks(individually=True) == [
        Settlement(1, multiple=True),
        Settlement(3, multiple=False),
        Settlement(5, multiple=False),
    ]
    assert (book.open, book.ackable) == (3, 0)


def test_the_multiple_names_a_tag_that_is_outstanding_itself() -> None:
    """RabbitMQ closes the channel over an unknown tag: what was rejected, or acked singly, can't be named."""
    book = ledger(delivered=4)
    book.mark_settled(message(2, of=book))
    book.mark_stored([message(1, of=book)])
    assert book.take_acks() == [Settlement(1, multiple=True)]
    book.mark_stored([message(4, of=book)])
    assert book.take_acks(individually=True) == [Settlement(4, multiple=False)]
    book.mark_stored([message(3, of=book)])
    assert book.take_acks() == [Settlement(3, multiple=True)]
    assert book.outstanding == 0


def test_no_multiple_is_written_over_given_up_tags_alone() -> None:
    """Everything before the hole was settled by frames of its own: there is nothing to ack."""
    book = ledger(delivered=3)
    for tag in (1, 2):
        book.mark_settled(message(tag, of=book))
    assert book.take_acks() == []
    book.mark_stored([message(3, of=book)])
    assert book.take_acks() == [Settlement(3, multiple=True)]


def test_giving_back_leaves_nothing_outstanding() -> None:
    """Only the open ones are requeued; the numbers go on in the channel's next epoch, which knows nothing of them."""
    book = ledger(delivered=3)
    late = message(2, of=book)
    book.mark_stored([message(1, of=book)])
    assert book.take_acks() == [Settlement(1, multiple=True)]
    following = book.next_epoch()
    assert book.close() == 2
    assert book.outstanding == 0
    following.next_tag = 5
    assert following.open_new() == 1
    assert not following.is_open(late)
    following.mark_stored([message(4, of=following)])
    assert following.take_acks() == [Settlement(4, multiple=True)]


def test_what_there_is_no_room_for_goes_back_alone() -> None:
    """The tags from the first that was dropped on, each to be nacked; what came before is settled as ever."""
    book = ledger(delivered=5)
    assert book.mark_requeued_from(4) == [4, 5]
    assert (book.open, book.outstanding) == (3, 3)
    book.mark_stored([message(tag, of=book) for tag in (1, 2, 3)])
    assert book.take_acks() == [Settlement(3, multiple=True)]
    assert book.outstanding == 0
    assert book.mark_requeued_from(6) == []


def test_held_bytes_are_those_of_open_deliveries() -> None:
    """What is stored or rejected takes no memory any more, whether its ack is written or waits."""
    book = ledger(delivered=3)
    held = [message(tag, of=book) for tag in (1, 2, 3)]
    book.memory_bytes = sum(one.memory_bytes for one in held)
    book.mark_stored(held[1:2])
    book.mark_settled(held[2])
    assert book.memory_bytes == held[0].memory_bytes > 0
    book.close()
    assert book.memory_bytes == 0


def test_closing_makes_settlements_stale() -> None:
    """A tag of a closed channel must not be settled: nothing is held any more, and `closed` says so."""
    book = ledger(delivered=3)
    one = message(2, of=book)
    assert book.is_open(one)
    book.mark_stored([message(1, of=book)])
    assert book.close() == 2
    assert book.closed
    assert not book.is_open(one)
    assert book.take_acks(individually=True) == []


def test_only_open_deliveries_are_held() -> None:
    """Stored, given up, collected and never delivered ones are not."""
    book = ledger(delivered=4)
    held = [message(tag, of=book) for tag in range(1, 6)]
    book.mark_stored(held[:1])
    book.take_acks()
    book.mark_stored(held[1:2])
    book.mark_settled(held[2])
    assert tags(one for one in held if book.is_open(one)) == [4]


def test_a_repr_shows_the_states() -> None:
    """Tests and traces see what is open (00), stored (01) and gone (02)."""
    book = ledger(delivered=3)
    book.mark_stored([message(2, of=book)])
    book.mark_settled(message(3, of=book))
    assert repr(book) == "<Ledger work/1 live 1+000102>"
    book.close()
    assert repr(book) == "<Ledger work/1 closed 4+>"


def test_open_tags_are_those_that_go_back() -> None:
    """In the order of delivery; what is stored or gone is not among them."""
    book = ledger(delivered=5)
    book.mark_stored([message(1, of=book)])
    book.take_acks()
    book.mark_settled(message(3, of=book))
    assert book.open_tags() == [2, 4, 5]


def test_bytes_of_several_go_together() -> None:
    """Each message that is settled gives back its own."""
    book = ledger(delivered=4)
    held = [message(tag, b"x" * 100 * tag, of=book) for tag in (1, 2, 3, 4)]
    book.memory_bytes = sum(one.memory_bytes for one in held)
    book.mark_stored(held[:2])
    assert book.memory_bytes == held[2].memory_bytes + held[3].memory_bytes
    book.mark_settled(held[2])
    assert book.memory_bytes == held[3].memory_bytes


def test_neighbours_behind_a_hole_are_all_acked_in_order() -> None:
    """None is passed over, whether they stand together or apart."""
    book = ledger(delivered=8)
    book.mark_stored([message(tag, of=book) for tag in (2, 3, 4, 6, 8)])
    assert book.take_acks(individually=True) == [Settlement(tag, multiple=False) for tag in (2, 3, 4, 6, 8)]
    assert book.outstanding == 3


def test_what_goes_back_leaves_its_place_once() -> None:
    """Later deliveries have their own places behind it, also when tags begin far from 1."""
    book = ledger(delivered=5)
    book.mark_stored([message(tag, of=book) for tag in (1, 2)])
    book.take_acks()
    assert book.mark_requeued_from(4) == [4, 5]
    book.next_tag = 8
    assert book.open_new() == 2
    assert book.open_tags() == [3, 6, 7]
    assert book.is_open(message(7, of=book))
    assert not book.is_open(message(5, of=book))


def test_the_first_delivery_is_held_too() -> None:
    """Tags begin at 1, places at 0."""
    book = ledger(delivered=1)
    assert book.is_open(message(1, of=book))
    assert not book.is_open(message(2, of=book))


def test_a_successor_is_of_the_same_queue_and_channel() -> None:
    """And goes on counting where its predecessor ended."""
    book = ledger("orders", 3, delivered=4)
    heir = book.next_epoch()
    assert (heir.queue, heir.channel, heir.next_tag, heir.open) == ("orders", 3, 5, 0)
    heir.next_tag = 6
    heir.open_new()
    assert heir.open_tags() == [5]
