"""Room for messages that wait in place: by deliveries and by bytes, and what is behind them counts."""

from __future__ import annotations

import itertools

from sidecar.core.ledger import Ledger
from sidecar.core.message import Message
from sidecar.core.scheduling.coalesce import Coalesced
from sidecar.core.scheduling.waiting_room import WaitingRoom


def messages(count: int, size_bytes: int = 10) -> list[Message]:
    ledger = Ledger("q", 1)
    return [Message(ledger, tag, 0, b"\0\0", b"\0\0", b"{}", size_bytes) for tag in range(1, count + 1)]


def test_no_more_are_admitted_than_there_is_room_for_and_those_inside_stay() -> None:
    """A message that waits on takes no second place."""
    first, second, third = messages(3)
    room = WaitingRoom(2, 1_000)
    assert [room.admit(one) for one in (first, second, third, first, second)] == [True, True, False, True, True]
    room.leave([first])
    assert room.admit(third)
    assert len(room) == 2


def test_bytes_count_as_well() -> None:
    """Large messages fill the room before there are many."""
    first, second = messages(2, size_bytes=600)
    room = WaitingRoom(100, 1_000)
    assert room.admit(first)
    assert not room.admit(second)
    room.leave([first])
    assert room.admit(second)


def test_what_is_behind_a_message_or_covered_by_it_counts() -> None:
    """It takes up the prefetch as well; grown too long, the message has to leave."""
    first, *others = messages(5)
    room = WaitingRoom(3, 1_000)
    first.next_for_document = others[0]
    assert room.admit(first)
    first.next_for_document.coalesced = Coalesced(b"", None, "", [others[1], others[2]])
    assert not room.admit(first)
    assert len(room) == 0
    assert room.admit(others[3])


def test_a_long_chain_is_not_walked_to_its_end() -> None:
    """Only as far as the answer needs."""
    chain = messages(10_000)
    for before, after in itertools.pairwise(chain):
        before.next_for_document = after
    assert not WaitingRoom(3, 1_000).admit(chain[0])


def test_those_of_an_ended_epoch_make_room() -> None:
    """Their deliveries are with the broker again."""
    first, second = messages(2)
    (other,) = messages(1)
    room = WaitingRoom(2, 1_000)
    assert room.admit(first)
    assert room.admit(second)
    assert not room.admit(other)
    first.ledger.close()
    room.drop_closed()
    assert room.admit(other)
    assert len(room) == 1
    room.leave([first, second])
    assert len(room) == 1
