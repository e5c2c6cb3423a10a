"""`sidecar.core.scheduling.order`: for each document one operation at a time, in the order of delivery."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core.ledger import Ledger
from sidecar.core.scheduling.order import DocumentOrder
from tests.builders import examples, message
from tests.drawing import drew

if TYPE_CHECKING:
    from sidecar.core.message import Message

KEYS = (b"a", b"b", b"c", None)


class OrderOfDocuments(RuleBasedStateMachine):
    """Messages of several epochs enter, are answered in any order, and epochs end at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.order = DocumentOrder()
        self.epochs = [Ledger("work", 1), Ledger("other", 2)]
        self.tags = 0
        self.entered: dict[bytes, list[Message]] = defaultdict(list)
        self.waiting: list[Message] = []
        self.free: list[Message] = []

    def set_free(self, messages: list[Message]) -> None:
        """Note what may go now: it waited, its epoch lives, and all before it are done."""
        for one in messages:
            assert one in self.waiting
            assert not one.ledger.closed or one.document_key is None
            self.waiting.remove(one)
            self.free.append(one)

    @rule(chosen=st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 1)), max_size=6))
    def enter(self, chosen: list[tuple[bytes | None, int]]) -> None:
        """A chunk is admitted."""
        chunk = []
        for key, epoch in chosen:
            self.tags += 1
            chunk.append(message(self.tags, of=self.epochs[epoch], key=key))
        for one in chunk:
            if one.document_key is not None:
                self.entered[one.document_key].append(one)
        self.waiting += chunk
        free = self.order.admit(chunk)
        keys = [one.document_key for one in chunk if one.document_key is not None]
        drew("a document twice in a chunk", len(set(keys)) < len(keys))
        drew("three for one document", any(len(chain) > 2 for chain in self.entered.values()))
        drew("no key", any(one.document_key is None for one in chunk))
        drew("two epochs wait for one document", any(
            len({one.ledger.channel for one in chain}) > 1 for chain in self.entered.values()
        ))  # fmt: skip
        assert [one for one in chunk if one in free] == free, "a chunk's order is kept"
        assert all(one in free for one in chunk if one.document_key is None), "what has no key waits for nobody"
        self.set_free(free)

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Some of what is in flight is answered, or was dropped because its epoch is over."""
        done = data.draw(st.lists(st.sampled_from(self.free), unique_by=id, min_size=1))
        for one in done:
            self.free.remove(one)
            if one.document_key is not None:
                assert self.entered[one.document_key][0] is one
                self.entered[one.document_key].pop(0)
        for key in {one.document_key for one in done if one.document_key is not None}:
            chain = self.entered[key]
            while chain and chain[0] in self.waiting and chain[0].ledger.closed:
                drew("one that waited is dropped with its epoch")
                drew("one behind a dropped one goes", len(chain) > 1 and not chain[1].ledger.closed)
                self.waiting.remove(chain.pop(0))
        freed = self.order.release(done)
        self.set_free(freed)
        drew("several go at once", len(freed) > 1)
        expected = {
            id(self.entered[one.document_key][0])
            for one in done
            if one.document_key is not None and self.entered[one.document_key]
        }
        assert {id(one) for one in freed} == expected, "the next one goes, and at once"

    @rule(which=st.integers(0, 1))
    def end_epoch(self, which: int) -> None:
        """A channel is lost; another one delivers from now on."""
        drew("an epoch ends with one in flight", any(one.ledger is self.epochs[which] for one in self.free))
        self.epochs[which].close()
        self.epochs[which] = Ledger("again", 1)

    @invariant()
    def one_at_a_time(self) -> None:
        """For each document at most one operation is free, and it is the oldest."""
        keys = [one.document_key for one in self.free if one.document_key is not None]
        assert len(keys) == len(set(keys))
        for key, chain in self.entered.items():
            if chain:
                assert chain[0] in self.free, f"nobody would ever free {key!r}"

    @invariant()
    def nothing_is_kept_for_documents_that_are_done(self) -> None:
        """Memory is bounded by what is in flight."""
        assert len(self.order) == sum(bool(chain) for chain in self.entered.values())

    def teardown(self) -> None:
        """In the end all were free once, but for those whose epoch was over."""
        while self.free:
            self.leave_all()
        assert self.waiting == []
        assert len(self.order) == 0

    def leave_all(self) -> None:
        """Answer everything that is in flight."""
        done, self.free = self.free, []
        for one in done:
            if one.document_key is not None:
                self.entered[one.document_key].pop(0)
        for key in {one.document_key for one in done if one.document_key is not None}:
            chain = self.entered[key]
            while chain and chain[0].ledger.closed:
                self.waiting.remove(chain.pop(0))
        self.set_free(self.order.release(done))


OrderOfDocuments.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=30)
TestOrder = pytest.mark.draws(
    "a document twice in a chunk", "three for one document", "no key", "two epochs wait for one document",
    "one that waited is dropped with its epoch", "one behind a dropped one goes", "several go at once",
    "an epoch ends with one in flight",
)(OrderOfDocuments.TestCase)  # fmt: skip
