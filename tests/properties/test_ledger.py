"""`sidecar.core.ledger` against a naive model of the broker, as a state machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core.ledger import Ledger, Settlement
from tests.builders import examples, message
from tests.drawing import drew

if TYPE_CHECKING:
    from sidecar.core.message import Message


class Channel:
    """What RabbitMQ does with the settlements of one channel: it closes it over a tag that it doesn't know."""

    def __init__(self) -> None:
        self.delivered = 0
        self.outstanding: set[int] = set()
        self.settled: list[int] = []

    def deliver(self, count: int) -> list[int]:
        """Deliver messages; return their tags."""
        first = self.delivered + 1
        self.delivered += count
        tags = list(range(first, self.delivered + 1))
        self.outstanding |= set(tags)
        return tags

    def settle(self, settlement: Settlement) -> list[int]:
        """Take an ack frame; return the tags that it covers."""
        assert settlement.tag in self.outstanding, "406 PRECONDITION_FAILED - unknown delivery tag"
        covered = [settlement.tag]
        if settlement.multiple:
            covered = sorted(tag for tag in self.outstanding if tag <= settlement.tag)
        self.outstanding -= set(covered)
        self.settled += covered
        return covered


class LedgerAgainstBroker(RuleBasedStateMachine):
    """Deliveries are stored, rejected, acked and given back in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger("work", 1)
        self.channel = Channel()
        self.open: dict[int, Message] = {}
        self.stored: set[int] = set()

    @rule(count=st.integers(0, 5))
    def deliver(self, count: int) -> None:
        """A chunk arrives."""
        for tag in self.channel.deliver(count):
            self.open[tag] = message(tag, of=self.ledger)
        self.ledger.next_tag += count
        assert self.ledger.open_new() == count

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        """Elasticsearch stored some, in any order."""
        tags = data.draw(st.lists(st.sampled_from(sorted(self.open)), unique=True))
        assert self.ledger.mark_stored([self.open.pop(tag) for tag in tags]) == len(tags)
        self.stored |= set(tags)

    @rule(count=st.integers(0, 4))
    def deliver_and_give_back(self, count: int) -> None:
        """There is no room for a chunk: it goes back, and what came before stays."""
        first_tag = self.ledger.next_tag
        tags = list(self.channel.deliver(count))
        self.ledger.next_tag += count
        self.ledger.open_new()
        assert self.ledger.mark_requeued_from(first_tag) == tags
        drew("a chunk is given back while others are open", tags and self.open)
        for tag in tags:
            self.channel.settle(Settlement(tag, multiple=False))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def mark_settled(self, data: st.DataObject) -> None:
        """One is rejected by a frame of its own."""
        tag = data.draw(st.sampled_from(sorted(self.open)))
        drew("one in the middle is given up", self.open and min(self.open) < tag < max(self.open))
        self.ledger.mark_settled(self.open.pop(tag))
        self.channel.settle(Settlement(tag, multiple=False))

    @rule(singly=st.booleans())
    def collect(self, singly: bool) -> None:
        """The acks that are due are written."""
        for settlement in self.ledger.take_acks(individually=singly):
            covered = set(self.channel.settle(settlement))
            drew("an ack of several" if len(covered) > 1 else "an ack of one")
            drew("an ack after a gap", max(covered) - min(covered) >= len(covered))
            drew("an ack by itself while an earlier one is open", self.open and min(covered) > min(self.open))
            assert covered <= self.stored, "an ack covers a delivery that isn't stored"
            self.stored -= covered
        drew("stored ones wait for an earlier one", self.stored)
        if singly:
            assert not self.stored
        else:
            assert all(tag > min(self.open) for tag in self.stored) if self.open else not self.stored

    @rule()
    def give_back(self) -> None:
        """A hold that was too long: what is stored is acked, the rest goes back, and the next epoch begins."""
        self.collect(singly=True)
        drew("an epoch ends with open ones", self.open)
        assert self.ledger.close() == len(self.open)
        self.ledger = self.ledger.next_epoch()
        self.channel.settled += sorted(self.channel.outstanding)
        self.channel.outstanding.clear()
        self.open.clear()

    @invariant()
    def counts_agree(self) -> None:
        """Open, withheld and outstanding are those of the broker."""
        assert self.ledger.open == len(self.open)
        assert self.ledger.ackable == len(self.stored)
        assert self.ledger.outstanding == len(self.channel.outstanding)

    @invariant()
    def open_ones_are_held(self) -> None:
        """And only those."""
        held = [
            tag for tag in range(1, self.channel.delivered + 3) if self.ledger.is_open(message(tag, of=self.ledger))
        ]
        assert held == sorted(self.open)

    def teardown(self) -> None:
        """In the end every delivery was settled exactly once."""
        self.ledger.mark_stored(self.open.values())
        self.stored |= set(self.open)
        self.open.clear()
        self.collect(singly=False)
        assert not self.channel.outstanding
        assert sorted(self.channel.settled) == list(range(1, self.channel.delivered + 1))
        assert self.ledger.close() == 0
        assert self.ledger.take_acks(individually=True) == []


LedgerAgainstBroker.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=30)
TestLedger = pytest.mark.draws(
    "an ack of one", "an ack of several", "an ack after a gap", "an ack by itself while an earlier one is open",
    "stored ones wait for an earlier one", "a chunk is given back while others are open",
    "one in the middle is given up", "an epoch ends with open ones",
)(LedgerAgainstBroker.TestCase)  # fmt: skip
