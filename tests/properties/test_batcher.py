"""`sidecar.core.batcher`: limits, order, age; nothing lost and nothing doubled."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.batcher import Batch, Batcher
from tests.builders import examples, ledger, message, tags

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


@settings(max_examples=examples(120))
@given(chunks, st.integers(1, 7), st.integers(1, 60), st.sampled_from(["drain", "pressure"]))
def test_every_message_is_in_one_batch_within_limits_and_in_time(  # noqa: C901 - one story
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
        while (due := batcher.due()) is not None and due <= moment:
            now = due
            aged = batcher.take_aged(now)
            assert aged, "it was due, but nothing was of age: the loop would spin"
            for batch in aged:
                assert arrived[batch.messages[0].tag] == batch.opened_at
                assert now >= batch.opened_at + MAX_AGE
                assert batch.trigger == "age"
                assert batch.mendable
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
            assert not batch.mendable
            if batch.trigger == "count":
                assert len(batch.messages) == max_items
        complete.extend(done)
    assert batcher.items == tag - sum(len(batch.messages) for batch in complete)
    while batcher.open_groups:
        rest = batcher.take_all() if ending == "drain" else batcher.take_oldest()
        assert [batch.trigger for batch in rest] == [ending] * len(rest)
        complete.extend(rest)

    for batch in complete:
        assert 0 < len(batch.messages) <= max_items
        assert batch.body_bytes == sum(one.bulk_bytes for one in batch.messages)
        assert batch.body_bytes <= max_bytes or len(batch.messages) == 1
        assert batch.opened_at == arrived[batch.messages[0].tag]
        assert sum(batch.messages[0].tag in sent for sent in by_correlation.values()) == 1
    for sent in by_correlation.values():
        taken = [one for batch in complete if batch.messages[0].tag in sent for one in tags(batch.messages)]
        assert taken == sent, "order within a correlation, nothing lost, doubled or mixed"


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
