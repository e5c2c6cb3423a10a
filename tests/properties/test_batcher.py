"""`sidecar.core.scheduling.batcher`: limits, order, age; nothing lost and nothing doubled."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.encoding.correlation import Correlation
from sidecar.core.scheduling.batcher import Batch, Batcher
from tests.builders import examples, ledger, message, tags
from tests.drawing import drew, how_many

if TYPE_CHECKING:
    from sidecar.core.message import Message

MAX_AGE = 1.0


class Chunk(NamedTuple):
    """Messages of one correlation that arrive together, some time after the last ones."""

    pause: float
    correlation: bytes
    sizes: list[int]


chunks = st.lists(
    st.builds(
        Chunk,
        st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 3.0]),
        st.sampled_from([b"", b"a", b"b"]),
        st.lists(st.integers(1, 40), max_size=12),
    ),
    max_size=12,
)


@pytest.mark.draws(
    "no messages", "one messages", "several messages", "an empty chunk", "several correlations",
    "a message over the limit", "a message at the limit", "ended by count", "ended by bytes", "ended by age",
    "ended by drain", "ended by pressure", "several are of age", "nothing is left",
)  # fmt: skip
@settings(max_examples=examples(120))
@given(chunks, st.integers(1, 7), st.integers(1, 60), st.sampled_from(["drain", "pressure"]))
def test_every_message_is_in_one_batch_within_limits_and_in_time(  # noqa: C901, PLR0915 - one story
    arrivals: list[Chunk], max_items: int, max_bytes: int, ending: str
) -> None:
    """A loop that comes back when `due` says so, over any arrivals."""
    batcher = Batcher(max_items, max_bytes, MAX_AGE)
    of = ledger()
    now, tag = 0.0, 0
    arrived: dict[int, float] = {}
    by_correlation: dict[bytes, list[int]] = {}
    complete: list[Batch] = []

    def wait_until(moment: float) -> None:
        nonlocal now
        while (due := batcher.next_deadline()) is not None and due <= moment:
            now = due
            aged = batcher.take_expired(now)
            assert aged, "it was due, but nothing was of age: the loop would spin"
            drew("several are of age", len(aged) > 1)
            for batch in aged:
                assert arrived[batch.messages[0].tag] == batch.opened_at
                assert now >= batch.opened_at + MAX_AGE
                assert batch.trigger == "age"
                assert batch.mergeable
            complete.extend(aged)
        now = moment

    for chunk in arrivals:
        wait_until(now + chunk.pause)
        held = []
        for size in chunk.sizes:
            tag += 1
            held.append(message(tag, b"x" * (size - 1), of=of))
            arrived[tag] = now
            by_correlation.setdefault(chunk.correlation, []).append(tag)
        done = batcher.add(held, now, chunk.correlation)
        for batch in done:
            assert batch.trigger in ("count", "bytes")
            assert not batch.mergeable
            if batch.trigger == "count":
                assert len(batch.messages) == max_items
        complete.extend(done)
    assert batcher.items == tag - sum(len(batch.messages) for batch in complete)
    drew(how_many(tag, "messages"))
    drew("an empty chunk", any(not chunk.sizes for chunk in arrivals))
    drew("several correlations", sum(map(bool, by_correlation.values())) > 1)
    drew("a message over the limit", any(size > max_bytes for chunk in arrivals for size in chunk.sizes))
    drew("a message at the limit", any(size == max_bytes for chunk in arrivals for size in chunk.sizes))
    drew("nothing is left", tag and not batcher.items)
    while batcher.open_groups:
        rest = batcher.take_all() if ending == "drain" else batcher.take_oldest()
        assert [batch.trigger for batch in rest] == [ending] * len(rest)
        complete.extend(rest)

    for batch in complete:
        drew(f"ended by {batch.trigger}")
        assert 0 < len(batch.messages) <= max_items
        assert batch.body_bytes == sum(one.bulk_bytes for one in batch.messages)
        assert batch.body_bytes <= max_bytes or len(batch.messages) == 1
        assert batch.opened_at == arrived[batch.messages[0].tag]
        assert sum(batch.messages[0].tag in sent for sent in by_correlation.values()) == 1
    for sent in by_correlation.values():
        taken = [one for batch in complete if batch.messages[0].tag in sent for one in tags(batch.messages)]
        assert taken == sent, "order within a correlation, nothing lost, doubled or mixed"


@pytest.mark.draws(
    "a rest", "no rest", "chunks smaller than batches", "chunks larger than batches", "one in a batch",
)  # fmt: skip
@settings(max_examples=examples(100))
@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 400))
def test_cutting_the_stream_into_chunks_makes_no_difference(chunk: int, max_items: int, count: int) -> None:
    """Batches are exactly as long as they may be while there is enough, however the chunks came off the socket."""
    batcher = Batcher(max_items, 1 << 30, MAX_AGE)
    of = ledger()
    held = [message(tag, of=of) for tag in range(1, count + 1)]
    complete = [batch for at in range(0, count, chunk) for batch in batcher.add(held[at : at + chunk], 0.0)]
    assert [len(batch.messages) for batch in complete] == [max_items] * (count // max_items)
    assert batcher.items == count % max_items
    drew("a rest" if batcher.items else "no rest")
    drew("chunks smaller than batches", chunk < max_items)
    drew("chunks larger than batches", chunk > max_items)
    drew("one in a batch", max_items == 1)


# Messages that say by themselves where they belong -------------------------------------------------------------------


class Said(NamedTuple):
    """A message and what it says of its group, and how long after the last one it comes."""

    pause: float
    size: int
    correlation: Correlation


said = st.builds(
    Said,
    st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.6, 2.0]),
    st.integers(1, 40),
    st.builds(
        Correlation,
        st.sampled_from([b"a", b"a", b"b", b"c"]),
        st.sampled_from([0, 0, 0, 1, 2, 3, 5, 9]),
        st.sampled_from([False, False, False, True]),
        st.booleans(),
    ).map(lambda one: one if one.completes else one._replace(is_signal=False)),
)


@pytest.mark.draws(
    "ended by count", "ended by complete", "ended by message", "ended by bytes", "ended by age", "ended by pressure",
    "ended by drain", "a signal", "a signal for nothing", "a set in several requests", "sizes that differ in a set",
    "a message over the limit", "only one group may be open", "several keys",
)  # fmt: skip
@settings(max_examples=examples(200))
@given(
    st.lists(said, max_size=40),
    st.integers(1, 7),
    st.sampled_from([20, 60, 1_000, 1_000]),
    st.sampled_from([1, 2, 9, 9]),
    st.integers(1, 12),
)
def test_every_message_is_in_one_batch_of_its_key_and_the_completion_rules_hold(
    arrivals: list[Said], max_items: int, max_bytes: int, max_groups: int, chunk_items: int
) -> None:
    """Each batch is judged by what is in it, and by what was said until then, not by how the batcher works."""
    batcher = Batcher(max_items, max_bytes, MAX_AGE, max_groups)
    of = ledger()
    now = 0.0
    held: list[Message] = []
    complete: list[Batch] = []
    open_at_most = 0

    pending: list[Message] = []

    def hand_on() -> None:
        complete.extend(batcher.add_correlated(pending, now))
        pending.clear()

    for tag, one in enumerate(arrivals, 1):
        if one.pause or len(pending) == chunk_items:
            hand_on()
        now += one.pause
        while (due := batcher.next_deadline()) is not None and due <= now:
            complete.extend(batcher.take_expired(now))
        made = message(tag, b"x" * (one.size - 1), of=of)
        made.correlation = one.correlation
        if one.correlation.is_signal:
            made.source = None
        held.append(made)
        pending.append(made)
        open_at_most = max(open_at_most, batcher.open_groups)
    hand_on()
    open_at_most = max(open_at_most, batcher.open_groups)
    assert open_at_most <= max_groups
    complete.extend(batcher.take_all())
    drew("only one group may be open", max_groups == 1)
    drew("a signal", any(one.correlation.is_signal for one in held))
    drew("a signal for nothing", held and held[0].correlation.is_signal)

    documents = [one for one in held if not one.correlation.is_signal]
    assert sorted(one.tag for batch in complete for one in batch.messages) == [one.tag for one in documents]
    for key in (b"a", b"b", b"c"):
        mine = [batch for batch in complete if batch.messages[0].correlation.key == key]
        assert all(one.correlation.key == key for batch in mine for one in batch.messages), "a batch has one key"
        in_order = [one.tag for batch in mine for one in batch.messages]
        assert in_order == [one.tag for one in documents if one.correlation.key == key], "in order within the key"
        drew("several keys", mine and len(documents) > len(in_order))
        carried_items, carried_size = 0, 0  # of a set that went in several requests
        for batch in mine:
            _judge(batch, max_items, max_bytes, carried_items, carried_size, held)
            said_sizes = [one.correlation.expected_items for one in batch.messages if one.correlation.expected_items]
            size = said_sizes[-1] if said_sizes else carried_size
            again = batch.trigger == "bytes" and size
            drew(f"ended by {batch.trigger}")
            drew("a set in several requests", carried_items)
            drew("sizes that differ in a set", len(set(said_sizes)) > 1)
            drew("a message over the limit", batch.body_bytes > max_bytes)
            carried_items, carried_size = (carried_items + len(batch.messages), size) if again else (0, 0)


def _judge(batch: Batch, max_items: int, max_bytes: int, carried: int, size: int, held: list[Message]) -> None:
    """Check that a batch ended where it had to, and not before."""
    items = batch.messages
    assert batch.body_bytes == sum(one.bulk_bytes for one in items)
    assert batch.body_bytes <= max_bytes or len(items) == 1
    assert batch.mergeable == (batch.trigger in ("age", "pressure", "drain"))
    of_key = [one for one in held if one.correlation.key == items[0].correlation.key]
    between = of_key[of_key.index(items[0]) : of_key.index(items[-1])]
    assert not any(one.correlation.is_signal for one in between), "it went on after a signal"
    for count, one in enumerate(items, 1):
        size = one.correlation.expected_items or size
        ends = one.correlation.completes or (carried + count >= size if size else count >= max_items)
        last = one is items[-1]
        assert last or not ends, "it went on after it was complete"
        if last and batch.trigger in ("count", "complete"):
            assert ends
            assert (batch.trigger == "complete") == bool(size)
        elif last and batch.trigger == "message" and not one.correlation.completes:
            key = one.correlation.key
            following = [other for other in held if other.tag > one.tag and other.correlation.key == key]
            assert following[0].correlation.is_signal, "completed by a message that isn't there"
        elif last and batch.trigger != "message":
            assert not ends
