"""`sidecar.core.scheduling.coalesce`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.scheduling.batcher import Batcher
from sidecar.core.scheduling.coalesce import Coalescer, Operation, undo_coalesce
from sidecar.core.scheduling.order import DocumentOrder
from tests.builders import ledger, long_string, message, properties, tags

if TYPE_CHECKING:
    from sidecar.core.ledger import Ledger
    from sidecar.core.message import Message
    from sidecar.core.scheduling.batcher import Batch
    from sidecar.core.scheduling.coalesce import Mode

LATEST, MERGE = "latest", "merge"


class Desk:
    """A coalescer with its order and its groups, and a composer that takes the action from a header."""

    def __init__(
        self, mode: Mode = "merge", *, most: int = 100, conflicts_matter: bool = False, **encoder_config: Template | str
    ) -> None:
        self.ledger: Ledger = ledger(delivered=1000)
        self.order = DocumentOrder()
        self.batcher = Batcher(most, 1_000_000, 1.0, coalesces=True)
        made = EncoderConfig(  # type: ignore[arg-type]
            index=Template("docs"), action=Template("{header.do}"), coalesce=mode, **encoder_config
        )
        equal_wins = made.version_type == "external_gte"
        self.coalescer = Coalescer(
            mode, self.order, self.batcher, conflicts_matter=conflicts_matter, equal_wins=equal_wins
        )
        self._composer = BulkEncoder(made, lambda: "made")
        self._tag = 0

    def make(self, action: str, body: bytes = b"{}", key: bytes = b"d", **headers: bytes) -> Message:
        self._tag += 1
        fields = [(b"do", long_string(action.encode()))]
        fields += [(name.encode(), long_string(value)) for name, value in headers.items()]
        one = message(self._tag, body, of=self.ledger, raw=properties(fields, message_id=key))
        (encoded,), rejections = self._composer.encode([one], 0.0)
        assert not rejections
        return encoded

    def admit(self, *messages: Message) -> tuple[int, list[Batch]]:
        return self.coalescer.admit(list(messages), 0.0)

    def sent(self) -> list[tuple[bytes, bytes | None]]:
        """Take what is in the groups: the verb and the source of each item."""
        items = [one for batch in self.batcher.take_all() for one in batch.messages]
        return [(one.action_line.split(b'"')[1], one.source) for one in items]


FOLDS = [
    # what comes first, what comes later, what is sent
    ([("index", b'{"a":1}'), ("index", b'{"b":2}')], (b"index", b'{"b":2}')),
    ([("create", b'{"a":1}'), ("index", b'{"b":2}')], (b"index", b'{"b":2}')),
    ([("update", b'{"a":1}'), ("index", b'{"b":2}')], (b"index", b'{"b":2}')),
    ([("upsert", b'{"a":1}'), ("delete", b"")], (b"delete", None)),
    ([("delete", b""), ("index", b'{"b":2}')], (b"index", b'{"b":2}')),
    ([("delete", b""), ("delete", b"")], (b"delete", None)),
]
MERGES = [
    ([("update", b'{"a":1}'), ("update", b'{"b":2}')], (b"update", b'{"doc":{"a":1,"b":2}}')),
    ([("upsert", b'{"a":1}'), ("update", b'{"b":2}')], (b"update", b'{"doc":{"a":1,"b":2},"doc_as_upsert":true}')),
    ([("upsert", b'{"a":1}'), ("upsert", b'{"b":2}')], (b"update", b'{"doc":{"a":1,"b":2},"doc_as_upsert":true}')),
    ([("index", b'{"a":1}'), ("update", b'{"b":2}')], (b"index", b'{"a":1,"b":2}')),
    ([("index", b'{"a":1}'), ("upsert", b'{"b":2}')], (b"index", b'{"a":1,"b":2}')),
    ([("create", b'{"a":1}'), ("update", b'{"b":2}')], (b"update", b'{"doc":{"b":2},"upsert":{"a":1,"b":2}}')),
    (
        [("create", b'{"a":1}'), ("update", b'{"b":2}'), ("upsert", b'{"a":3}')],
        (b"update", b'{"doc":{"b":2,"a":3},"upsert":{"a":3,"b":2}}'),
    ),
    (
        [("update", b'{"a":1}'), ("update", b'{"b":2}'), ("index", b"{}"), ("update", b'{"c":3}')],
        (b"index", b'{"c":3}'),
    ),
]
APART = [
    [("delete", b""), ("create", b"{}")],
    [("delete", b""), ("update", b"{}")],
    [("index", b"{}"), ("create", b"{}")],
    [("update", b"{}"), ("upsert", b"{}")],
    [("create", b"{}"), ("create", b"{}")],
    [("update", b'{"a":1}'), ("update", b'{"a":{"b":2}}')],
]


@pytest.mark.parametrize("mode", [LATEST, MERGE])
@pytest.mark.parametrize(("operations", "sent"), FOLDS)
def test_what_was_not_sent_is_superseded_by_a_later_index_or_delete(
    mode: Mode, operations: list[tuple[str, bytes]], sent: tuple[bytes, bytes | None]
) -> None:
    """One item with the later content; the count says how many were never sent."""
    desk = Desk(mode)
    folded, complete = desk.admit(*(desk.make(*one) for one in operations))
    assert (folded, complete) == (len(operations) - 1, [])
    assert desk.sent() == [sent]


@pytest.mark.parametrize(("operations", "sent"), MERGES)
def test_partial_updates_are_merged_where_the_result_is_the_same_whatever_is_stored(
    operations: list[tuple[str, bytes]], sent: tuple[bytes, bytes]
) -> None:
    """The rows of the table in the module's functions."""
    desk = Desk(MERGE)
    folded, _ = desk.admit(*(desk.make(*one) for one in operations))
    assert folded == len(operations) - 1
    assert desk.sent() == [sent]


@pytest.mark.parametrize("operations", APART)
def test_what_would_not_be_the_same_goes_one_by_one(operations: list[tuple[str, bytes]]) -> None:
    """The later one waits behind the earlier one, as ever."""
    desk = Desk(MERGE)
    first, later = (desk.make(*one) for one in operations)
    assert desk.admit(first, later) == (0, [])
    assert first.next_for_document is later
    assert len(desk.sent()) == 1


@pytest.mark.parametrize("action", ["update", "upsert"])
def test_latest_merges_no_partial_update(action: str) -> None:
    """A part of a document supersedes nothing."""
    desk = Desk(LATEST)
    assert desk.admit(desk.make("index", b'{"a":1}'), desk.make(action, b'{"b":2}')) == (0, [])


def test_of_two_versions_the_higher_one_stays_whichever_comes_last() -> None:
    """The message with the lower one is covered all the same."""
    desk = Desk(LATEST, version=Template("{header.v}"))
    folded, _ = desk.admit(
        desk.make("index", b'{"n":5}', v=b"5"), desk.make("delete", v=b"4"), desk.make("index", b'{"n":6}', v=b"6")
    )
    assert folded == 2
    (batch,) = desk.batcher.take_all()
    (one,) = batch.messages
    assert (one.action_line, one.source) == (
        b'{"index":{"_id":"d","version":6,"version_type":"external"}}\n',
        b'{"n":6}',
    )


@pytest.mark.parametrize(("kind", "source"), [("external", b'{"n":1}'), ("external_gte", b'{"n":2}')])
def test_of_equal_versions_the_type_of_version_decides(kind: str, source: bytes) -> None:
    """`external` doesn't write the same version again, `external_gte` does."""
    desk = Desk(LATEST, version=Template("{header.v}"), version_type=kind)
    desk.admit(desk.make("index", b'{"n":1}', v=b"7"), desk.make("index", b'{"n":2}', v=b"7"))
    assert desk.sent() == [(b"index", source)]


def test_no_conflict_is_hidden_from_who_wants_to_know() -> None:
    """Where conflicts are dead letters, a create isn't superseded, and a version that comes late isn't covered."""
    desk = Desk(MERGE, conflicts_matter=True)
    assert desk.admit(desk.make("create"), desk.make("index"))[0] == 0
    desk = Desk(LATEST, conflicts_matter=True, version=Template("{header.v}"))
    assert desk.admit(desk.make("index", v=b"2"), desk.make("index", v=b"1"))[0] == 0


def test_documents_of_different_routing_are_different_documents() -> None:
    """They lie on different shards, though they have the same id."""
    desk = Desk(LATEST, routing=Template("{header.r}"))
    assert desk.admit(desk.make("index", r=b"x"), desk.make("index", r=b"y"))[0] == 0
    assert desk.admit(desk.make("index", key=b"e", r=b"x"), desk.make("index", key=b"e", r=b"x"))[0] == 1


def test_nothing_is_merged_where_a_pipeline_changes_documents() -> None:
    """It would see another document than each of them."""
    desk = Desk(MERGE, pipeline=Template("enrich"))
    assert desk.admit(desk.make("index", b'{"a":1}'), desk.make("upsert", b'{"b":2}'))[0] == 0


def test_messages_of_different_groups_are_not_folded() -> None:
    """Each set has its own, and waits for it to be complete."""
    desk = Desk(LATEST, batch_key=Template("{header.set}"))
    assert desk.admit(desk.make("index", set=b"1"), desk.make("index", set=b"2"))[0] == 0


def test_covered_messages_count_towards_the_batch() -> None:
    """A fresh batch is so many messages long, however few items it has; what comes later opens a new one."""
    desk = Desk(LATEST, most=4)
    messages = [desk.make("index", b'{"n":%d}' % at, b"d%d" % (at % 2)) for at in range(6)]
    folded, (batch,) = desk.admit(*messages)
    assert (batch.trigger, batch.message_count, tags(batch.messages)) == ("count", 4, [1, 2])
    assert [one.source for one in batch.messages] == [b'{"n":2}', b'{"n":3}']
    assert folded == 2
    assert messages[0].next_for_document is messages[4]


def test_a_complete_set_counts_those_that_are_covered() -> None:
    """Also where the size of the set is told by a message that is folded."""
    desk = Desk(LATEST, batch_complete_count=Template("{header.size|}"))
    _, complete = desk.admit(desk.make("index"), desk.make("index", size=b"3"), desk.make("index"))
    assert [(batch.trigger, batch.message_count) for batch in complete] == [("complete", 3)]


@pytest.mark.parametrize(
    ("sizes", "complete_at"),
    [
        ([b"3", b"2"], 2),
        ([b"2", b"3", b""], 3),
        ([b"2", b""], 2),
        ([b"4", b"", b"3"], 3),
        ([b"4", b"3", b""], 3),
    ],
)
@pytest.mark.parametrize("waits", [False, True])
def test_of_the_sizes_of_a_set_the_latest_one_counts(sizes: list[bytes], complete_at: int, waits: bool) -> None:
    """As without folding: in an open group, and while the document waits for an operation that is in flight."""
    desk = Desk(LATEST, batch_complete_count=Template("{header.size|}"))
    before = desk.make("index")
    if waits:
        desk.admit(before)
        desk.batcher.take_all()
    messages = [desk.make("index", size=size) for size in sizes]
    folded, complete = desk.admit(*messages)
    if waits:
        assert (folded, complete) == (len(sizes) - 1, [])
        (next_one,) = desk.order.release([before])
        complete = desk.batcher.add_correlated([next_one], 0.0)
    assert [(batch.trigger, batch.message_count) for batch in complete] == [("complete", complete_at)]


def test_a_message_that_says_nothing_of_the_set_leaves_its_size() -> None:
    """Also if the message that it is folded into said something else, before others corrected that."""
    desk = Desk(LATEST, batch_complete_count=Template("{header.size|}"))
    _, complete = desk.admit(
        desk.make("index", key=b"a", size=b"9"), desk.make("index", key=b"b", size=b"3"), desk.make("index", key=b"a")
    )
    assert [(batch.trigger, batch.message_count) for batch in complete] == [("complete", 3)]


@pytest.mark.parametrize("ends", [(b"1", b""), (b"", b"1"), (b"", b"1", b"")])
def test_a_flush_message_among_those_that_wait_ends_their_group(ends: tuple[bytes, ...]) -> None:
    """Whichever of them it is, as soon as their turn comes."""
    desk = Desk(LATEST, batch_flush_when=Template("{header.end|}"))
    before = desk.make("index")
    desk.admit(before)
    desk.batcher.take_all()
    folded, complete = desk.admit(*[desk.make("index", end=end) for end in ends])
    assert (folded, complete) == (len(ends) - 1, [])
    (next_one,) = desk.order.release([before])
    complete = desk.batcher.add_correlated([next_one], 0.0)
    assert [(batch.trigger, batch.message_count) for batch in complete] == [("message", len(ends))]


def test_a_flush_message_that_is_folded_ends_its_group() -> None:
    """At once, as any other."""
    desk = Desk(LATEST, batch_flush_when=Template("{header.end|}"))
    _, complete = desk.admit(desk.make("index"), desk.make("index", end=b"1"))
    assert [(batch.trigger, batch.message_count) for batch in complete] == [("message", 2)]


def test_what_waits_for_its_turn_is_superseded_too() -> None:
    """Behind an operation in flight only one more is sent, whatever comes meanwhile."""
    desk = Desk(LATEST)
    first = desk.make("index", b'{"n":0}')
    desk.admit(first)
    desk.batcher.take_all()
    waiting = [desk.make("index", b'{"n":%d}' % at) for at in range(1, 5)]
    assert desk.admit(*waiting)[0] == 3
    (next_one,) = desk.order.release([first])
    assert next_one is waiting[0]
    assert next_one.source == b'{"n":4}'
    desk.batcher.add_correlated([next_one], 0.0)
    (batch,) = desk.batcher.take_all()
    assert batch.message_count == 4


def test_nothing_is_folded_into_what_was_sent() -> None:
    """Nor into what the broker has again."""
    desk = Desk(LATEST)
    desk.admit(desk.make("index"))
    desk.batcher.take_all()
    assert desk.admit(desk.make("index"))[0] == 0
    desk = Desk(LATEST)
    desk.admit(desk.make("index"))
    desk.ledger.close()
    desk.ledger = ledger(delivered=1000)
    assert desk.admit(desk.make("index"))[0] == 0


def test_what_failed_together_gets_back_what_it_was() -> None:
    """Line, source and action of its own; the others come behind it, before what waited already, and fold no more."""
    desk = Desk(MERGE)
    one, two, three = desk.make("create", b'{"a":1}'), desk.make("update", b'{"b":2}'), desk.make("update", b'{"c":3}')
    own = one.action_line, one.source, one.action
    held = desk.ledger.memory_bytes
    desk.admit(one, two, three)
    assert desk.ledger.memory_bytes > held, "a document that is made here takes memory"
    desk.batcher.take_all()
    behind = desk.make("delete")
    desk.admit(behind)
    one.times_unanswered, one.attempts = True, 3
    followers = undo_coalesce(one)
    desk.order.insert_after(one, followers)
    assert (one.action_line, one.source, one.action) == own
    assert (followers, one.attempts, two.times_unanswered) == ([two, three], 0, True)
    assert one.next_for_document is two
    assert two.next_for_document is three
    assert three.next_for_document is behind
    assert desk.ledger.memory_bytes == held
    assert one.operation is two.operation is three.operation is None


def test_followers_line_up_behind_the_last_one_as_well() -> None:
    """What is admitted next waits behind all of them."""
    desk = Desk(LATEST)
    one, two = desk.make("index"), desk.make("index")
    desk.admit(one, two)
    desk.batcher.take_all()
    desk.order.insert_after(one, undo_coalesce(one))
    last = desk.make("index")
    desk.admit(last)
    assert two.next_for_document is last


def test_a_large_document_is_not_merged() -> None:
    """It would be read and written again with each of many updates."""
    desk = Desk(MERGE)
    large = b'{"a":"%s"}' % (b"x" * 1024 * 1024)
    assert desk.admit(desk.make("index", large), desk.make("update", b'{"b":2}'))[0] == 0


def test_the_same_operation_is_returned_where_a_later_one_changes_nothing() -> None:
    """So that nothing is taken over from it."""
    desk = Desk(LATEST)
    first = Operation("index", version=5, document=b"{}")
    assert desk.coalescer.fold(first, Operation("delete", version=4)) is first
