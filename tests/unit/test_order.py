"""`sidecar.core.order`."""

from __future__ import annotations

from sidecar.core.order import Order
from tests.builders import ledger, message, tags


def test_messages_without_a_document_id_are_free() -> None:
    """Nothing can follow what has no key, and nothing is remembered of it."""
    order = Order()
    first, second = message(1), message(2)
    assert order.enter([first, second]) == [first, second]
    assert len(order) == 0
    assert order.leave([first, second]) == []


def test_the_second_operation_on_a_document_waits_for_the_first() -> None:
    """Also inside one chunk: in one request an earlier one may be refused and a later one stored."""
    order = Order()
    first, second, other = message(1, key=b"a"), message(2, key=b"a"), message(3, key=b"b")
    assert order.enter([first, second, other]) == [first, other]
    assert order.leave([first]) == [second]
    assert order.leave([second, other]) == []
    assert len(order) == 0


def test_a_chain_is_freed_one_by_one_in_order() -> None:
    """However long it grew, and while it still grows."""
    order = Order()
    chain = [message(tag, key=b"a") for tag in range(1, 6)]
    assert tags(order.enter(chain[:3])) == [1]
    assert tags(order.leave(chain[:1])) == [2]
    assert order.enter(chain[3:]) == []
    for at in range(1, 4):
        assert order.leave([chain[at]]) == [chain[at + 1]]
    assert order.leave([chain[4]]) == []
    assert len(order) == 0


def test_followers_of_a_dead_epoch_are_skipped() -> None:
    """The broker has them again, so they must not be written now."""
    order = Order()
    dead, live = ledger(), ledger()
    ghost, gone, again = message(1, of=dead, key=b"a"), message(2, of=dead, key=b"a"), message(1, of=live, key=b"a")
    order.enter([ghost, gone])
    dead.close()
    assert order.enter([again]) == []
    assert order.leave([ghost]) == [again]
    assert order.leave([again]) == []
    assert len(order) == 0


def test_a_redelivery_waits_behind_its_own_ghost() -> None:
    """The ghost is in flight: what is written first must not win over what is written last."""
    order = Order()
    dead = ledger()
    ghost, again = message(1, of=dead, key=b"a"), message(1, key=b"a")
    order.enter([ghost])
    dead.close()
    assert order.enter([again]) == []
    assert order.leave([ghost]) == [again]


def test_a_chain_that_died_altogether_is_forgotten() -> None:
    """Nothing is left behind for a document whose operations are all with the broker again."""
    order = Order()
    dead = ledger()
    chain = [message(tag, of=dead, key=b"a") for tag in (1, 2, 3)]
    order.enter(chain)
    dead.close()
    assert order.leave(chain[:1]) == []
    assert len(order) == 0
    assert all(one.follower is None for one in chain)
    assert order.enter([message(1, key=b"a")])


def test_a_reject_that_never_entered_leaves_the_others_on_its_document_alone() -> None:
    """It has a key, for its id was read before its body was refused; it frees nobody, and nobody is forgotten."""
    order = Order()
    flying, refused, later = message(1, key=b"a"), message(2, key=b"a"), message(3, key=b"a")
    order.enter([flying])
    assert order.leave([refused, message(9, key=b"other")]) == []
    assert order.enter([later]) == []
    assert order.leave([flying]) == [later]


def test_thousands_of_dead_followers_are_walked_without_recursion() -> None:
    """One hot document fills a whole prefetch with followers."""
    order = Order()
    dead = ledger()
    chain = [message(tag, of=dead, key=b"a") for tag in range(1, 20_000)]
    order.enter(chain)
    dead.close()
    assert order.leave(chain[:1]) == []
    assert len(order) == 0


def test_what_waits_behind_others_is_forgotten_with_its_epoch() -> None:
    """In a long outage sessions come and go: what they brought must not pile up behind a request that hangs."""
    order = Order()
    first, second, third, later = (message(number, key=b"one") for number in (1, 2, 3, 4))
    assert order.enter([first, second, third]) == [first]
    order.cut([first])
    assert first.follower is None
    assert order.enter([later]) == []
    assert order.leave([first]) == [later]
    assert order.leave([later]) == []
    assert len(order) == 0
