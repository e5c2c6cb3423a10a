"""Groups by what messages say of themselves, on real servers: how many requests, and which documents in each."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.integration.harness import message
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from tests.integration.harness import Harness

SECONDS = 120.0
SEED = 20_241_103
MEBIBYTE = 1 << 20


def test_forty_messages_and_a_batch_size_of_ten_are_four_batches(bench: Harness) -> None:
    """The producer of the classic tutorial; nothing is left to wait for its age."""
    bench.declare()
    bench.publish([message(b'{"n":%d}' % at, str(at)) for at in range(40)])
    sidecar = bench.sidecar(BATCH_MAX_ITEMS="10", BATCH_MAX_AGE="1h")
    bench.wait_empty(SECONDS, sidecar)
    account = sidecar.terminate()
    assert account["batches"] == {"count": 4}
    assert account["requests"] == {"stored": 4}


def test_sets_of_250_arrive_in_one_request_each_whatever_interleaves(bench: Harness) -> None:
    """Twelve sets shuffled, and single messages between them; a batch has 100 items otherwise."""
    rng = random.Random(SEED)
    bench.declare()
    messages = [
        message(b'{"n":%d}' % at, f"{at}-{one}", correlation_id=f"set-{one}", headers={"size": 250})
        for at in range(250)
        for one in range(12)
    ]
    rng.shuffle(messages)
    bench.publish(messages)
    sidecar = bench.sidecar(
        BATCH_KEY="{correlation_id}",
        BATCH_COMPLETE_COUNT="{header.size}",
        BATCH_MAX_ITEMS="100",
        BATCH_MAX_AGE="1h",
        AMQP_PREFETCH="5000",
    )
    bench.wait_empty(SECONDS, sidecar)
    account = sidecar.terminate()
    assert account["batches"] == {"complete": 12}
    assert account["requests"] == {"stored": 12}
    assert bench.stored() == 3_000


def test_a_flush_message_and_a_signal_end_a_batch_at_once(bench: Harness) -> None:
    """The message is stored with the others; the signal is acked and stored nowhere. What is late waits."""
    bench.declare()
    sidecar = bench.sidecar(BATCH_FLUSH_WHEN="{header.last|}", BATCH_KEY="{type}", BATCH_MAX_AGE="1h")
    last = {"headers": {"last": "yes"}}
    bench.publish([message(b'{"n":%d}' % at, f"a{at}", type="a") for at in range(7)])
    bench.publish([message(b'{"n":9}', "late", type="b")])
    wait_until(lambda: bench.count() == 0, SECONDS, "all delivered", sidecar.told)
    assert bench.stored() == 0
    bench.publish([message(b'{"n":7}', "a7", type="a", **last)])
    wait_until(lambda: bench.stored() == 8, SECONDS, "the group", sidecar.told)
    bench.publish([message(b'{"n":%d}' % at, f"c{at}", type="c") for at in range(3)])
    bench.publish([message(b"", type="c", **last)])
    wait_until(lambda: bench.stored() == 11, SECONDS, "the group of the signal", sidecar.told)
    account = sidecar.terminate()
    assert account["batches"] == {"message": 2, "drain": 1}
    assert account["ack"] == 13
    assert bench.dead_letters() == []
    assert set(bench.documents()) == {f"a{at}" for at in range(8)} | {"c0", "c1", "c2", "late"}


@pytest.mark.parametrize("count", [5_000, pytest.param(50_000, marks=pytest.mark.full)])
def test_a_key_that_never_repeats_flows_within_the_memory_limit(bench: Harness, count: int) -> None:
    """Each message is a group of its own and its age never comes: the oldest share requests, and all are stored."""
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    text = b"x" * 400
    bench.publish([message(b'{"n":%d,"text":"%s"}' % (at, text), str(at)) for at in range(count)])
    sidecar = bench.sidecar(BATCH_KEY="{message_id}", BATCH_MAX_AGE="1h", MEMORY_LIMIT="4MiB")
    most = 0

    def nearly_done() -> bool:
        nonlocal most
        status = f"/proc/{sidecar.process.pid}/status"
        with open(status, encoding="ascii") as lines:  # noqa: PTH123
            most = max(most, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")))
        return bench.stored() >= count - 1_000

    wait_until(nearly_done, SECONDS, "nearly all", sidecar.told)
    account = sidecar.terminate()
    print(
        f"{count:,} keys: {account['requests']} requests, batches {account['batches']}, {most / MEBIBYTE:.0f} MiB RSS"
    )
    assert bench.stored() == count
    assert set(account["batches"]) == {"pressure", "drain"}
    assert sum(account["requests"].values()) < count / 20
    assert most < 120 * MEBIBYTE
