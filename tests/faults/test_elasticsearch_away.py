"""Elasticsearch goes away while messages flow: nothing lost, nothing buried, few requests, and full speed soon."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.harness import (
    DEADLINE_SECONDS,
    FULL_SPEED_SHARE,
    OUTAGE_REQUESTS,
    RECOVERY_SECONDS,
    Rates,
)
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from tests.faults.harness import FaultHarness

SHORT = (5.0, 10_000)
LONG = (30.0, 100_000)
SIZES = [pytest.param(*SHORT, id="short"), pytest.param(*LONG, id="long", marks=pytest.mark.full)]
CONCURRENCY = 4
STARTING_SECONDS = 10.0
"""So long at least a node takes to start, which is part of the outage."""


@pytest.mark.parametrize("how", ["killed", "frozen"])
@pytest.mark.parametrize(("seconds", "count"), SIZES)
def test_elasticsearch_away_in_the_middle_of_a_stream(
    harness: FaultHarness, how: str, seconds: float, count: int
) -> None:
    """All is stored once; the outage costs a handful of requests, and soon after it all goes as fast as before."""
    batch = count // 100
    harness.create_index({"at": {"type": "long"}})
    harness.declare()
    harness.publish_more(count // 2)
    rates = Rates(harness.indexed)
    began_at = time.monotonic()
    sidecar = harness.sidecar(BATCH_MAX_ITEMS=str(batch), BULK_CONCURRENCY=str(CONCURRENCY), BULK_TIMEOUT="3s")
    harness.wait_indexed(count // 5, sidecar)
    gone_at = time.monotonic()
    if how == "killed":
        harness.elasticsearch.kill()
    else:
        harness.elasticsearch.freeze()
    away_at = time.monotonic()
    harness.publish_more(count // 4)

    def since(name: str) -> list[float]:
        """Return when it was told since then: on a busy machine there may have been a hold before."""
        moments = [sidecar.moment(event) for event in sidecar.events(name)]
        return [moment for moment in moments if moment >= gone_at]

    wait_until(lambda: bool(since("elasticsearch.held")), DEADLINE_SECONDS, "held", sidecar.told)
    # How long an outage is, is what this is about: nothing else could be waited for.
    starting_seconds = STARTING_SECONDS if how == "killed" else 0.0
    time.sleep(max(0.0, away_at + seconds - starting_seconds - time.monotonic()))
    if how == "killed":
        harness.elasticsearch.start()
    else:
        harness.elasticsearch.thaw()
    back_at = time.monotonic()
    harness.publish_more(count - harness.published)
    wait_until(lambda: bool(since("elasticsearch.resumed")), DEADLINE_SECONDS, "resumed", sidecar.told)
    wait_until(lambda: harness.stored() == count, DEADLINE_SECONDS, "all documents", sidecar.told)
    caught_up_after = time.monotonic() - back_at
    harness.wait_all_stored(sidecar)
    rates.stop()
    account = sidecar.terminate()

    before = rates.between(began_at, gone_at)
    faster = rates.reached(FULL_SPEED_SHARE * before, back_at)
    # Where so little is left that it is stored at once, nothing is left to be fast with.
    full_speed_after = min(caught_up_after, faster if faster is not None else caught_up_after)
    # It may answer some time before whoever started it sees that it does.
    requests = harness.http.count(away_at, min(back_at, since("elasticsearch.resumed")[0]))
    print(
        f"{how} for {back_at - away_at:.1f} s: {requests} requests; {before:.0f} documents a second before, half of "
        f"that again after {faster} s, all stored after {caught_up_after:.1f} s; {account}"
    )
    assert requests < OUTAGE_REQUESTS
    # A server that takes longer to start than the outage was meant to be is looked for more and more seldom.
    assert full_speed_after <= RECOVERY_SECONDS + max(0.0, back_at - away_at - LONG[0]) / 2
    # What was on its way when it went, and a single item for each probe.
    harness.judge(account, most_rewritten=CONCURRENCY * batch + requests)
    assert account["received"] == account["ack"] == count
    assert len(since("elasticsearch.held")) <= 3, "a line a change, not one a try"
    assert len(since("elasticsearch.resumed")) == 1


def test_messages_are_back_in_the_queue_when_a_hold_is_too_long(harness: FaultHarness) -> None:
    """After ``SIDECAR_HOLD_MAX`` others could have them, in order; they are stored when Elasticsearch is back."""
    count = 1000
    harness.create_index({"at": {"type": "long"}})
    harness.declare()
    # No proxy: connections are refused, as they are where a server is gone.
    sidecar = harness.sidecar(HOLD_MAX="3s", BATCH_MAX_ITEMS="100", ELASTICSEARCH_URL=harness.elasticsearch.url)
    sidecar.wait_for("amqp.consuming")
    harness.elasticsearch.kill()
    away_at = time.monotonic()
    harness.publish_more(count)
    held = sidecar.wait_for("elasticsearch.held")
    assert held["reason"]
    given_back = sidecar.wait_for("amqp.given_back")
    given_back_after = time.monotonic() - away_at
    wait_until(lambda: harness.count() == count, DEADLINE_SECONDS, "all messages back", sidecar.told)
    assert given_back["reason"]
    assert harness.amqp.queue_state(harness.queue).consumers == 0
    assert [one.message_id for one in harness.amqp.peek(harness.queue, count)] == [str(at) for at in range(count)]
    time.sleep(max(0.0, away_at + 8.0 - time.monotonic()))
    assert len(sidecar.events("amqp.given_back")) == 1, "nothing is taken to be given back again"
    assert harness.count() == count
    harness.elasticsearch.start()
    back_at = time.monotonic()
    harness.wait_all_stored(sidecar)
    print(f"given back after {given_back_after:.1f} s, all stored {time.monotonic() - back_at:.1f} s after the return")
    account = sidecar.terminate()
    harness.judge(account, most_rewritten=0)
    assert account["requeue"] == account["received"] - count
