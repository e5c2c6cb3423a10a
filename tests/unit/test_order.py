"""`sidecar.core.scheduling.order`."""

from __future__ import annotations

from sidecar.core.scheduling.order import DocumentOrder
from tests.builders import ledger, message, tags


def test_messages_without_a_document_id_are_free() -> None:
    """Nothing can follow what has no key, and nothing is remembered of it."""
    order = DocumentOrder()
    first, second = message(1), message(2)
    assert order.admit([first, second]) == [first, second]
    assert len(order) == 0
    assert order.release([first, second]) == []


def test_the_second_operation_on_a_document_waits_for_the_first() -> None:
    """Also inside one chunk: in one request an earlier one may be refused and a later one stored."""
    order = DocumentOrder()
    first, second, other = message(1, key=b"a"), message(2, key=b"a"), message(3, key=b"b")
    assert order.admit([first, second, other]) == [first, other]
    assert order.release([first]) == [second]
    assert order.release([second, other]) == []
    assert len(order) == 0


def test_a_chain_is_freed_one_by_one_in_order() -> None:
    """However long it grew, and while it still grows."""
    order = DocumentOrder()
    chain = [message(tag, key=b"a") for tag in range(1, 6)]
    assert tags(order.admit(chain[:3])) == [1]
    assert tags(order.release(chain[:1])) == [2]
    assert order.admit(chain[3:]) == []
    for at in range(1, 4):
        assert order.release([chain[at]]) == [chain[at + 1]]
    assert order.release([chain[4]]) == []
    assert len(order) == 0


def test_followers_of_a_dead_epoch_are_skipped() -> None:
    """The broker has them again, so they must not be written now."""
    order = DocumentOrder()
    dead, live = ledger(), ledger()
    ghost, gone, again = message(1, of=dead, key=b"a"), message(2, of=dead, key=b"a"), message(1, of=live, key=b"a")
    order.admit([ghost, gone])
    dead.close()
    assert order.admit([again]) == []
    assert order.release([ghost]) == [again]
    assert order.release([again]) == []
    assert len(order) == 0


def test_a_redelivery_waits_behind_its_own_ghost() -> None:
    """The ghost is in flight: what is written first must not win over what is written last."""
    order = DocumentOrder()
    dead = ledger()
    ghost, again = message(1, of=dead, key=b"a"), message(1, key=b"a")
    order.admit([ghost])
    dead.close()
    assert order.admit([again]) == []
    assert order.release([ghost]) == [again]


def test_a_chain_that_died_altogether_is_forgotten() -> None:
    """Nothing is left behind for a document whose operations are all with the broker again."""
    order = DocumentOrder()
    dead = ledger()
    chain = [message(tag, of=dead, key=b"a") for tag in (1, 2, 3)]
    order.admit(chain)
    dead.close()
    assert order.release(chain[:1]) == []
    assert len(order) == 0
    assert all(one.next_for_document is None for one in chain)
    assert order.admit([message(1, key=b"a")])


def test_a_reject_that_never_entered_leaves_the_others_on_its_document_alone() -> None:
    """It has a key, for its id was read before its body was refused; it frees nobody, and nobody is forgotten."""
    order = DocumentOrder()
    flying, refused, later = message(1, key=b"a"), message(2, key=b"a"), message(3, key=b"a")
    order.admit([flying])
    assert order.release([refused, message(9, key=b"other")]) == []
    assert order.admit([later]) == []
    assert order.release([flying]) == [later]


def test_thousands_of_dead_followers_are_walked_without_recursion() -> None:
    """One hot document fills a whole prefetch with followers."""
    order = DocumentOrder()
    dead = ledger()
    chain = [message(tag, of=dead, key=b"a") for tag in range(1, 20_000)]
    order.admit(chain)
    dead.close()
    assert order.release(chain[:1]) == []
    assert len(order) == 0


def test_what_waits_behind_others_is_forgotten_with_its_epoch() -> None:
    """In a long outage sessions come and go: what they brought must not pile up behind a request that hangs."""
    order = DocumentOrder()
    first, second, third, later = (message(number, key=b"one") for number in (1, 2, 3, 4))
    assert order.admit([first, second, third]) == [first]
    order.drop_followers([first])
    assert first.next_for_document is None
    assert order.admit([later]) == []
    assert order.release([first]) == [later]
    assert order.release([later]) == []
    assert len(order) == 0
