"""Failure stores of data streams: what becomes of the messages whose documents they took.

A distribution without the module ``data-streams`` takes the option in a template, and then refuses documents as ever.
There a proxy gives the answers that a full distribution gives; the test with a real failure store is skipped.
"""

from __future__ import annotations

import json
import urllib.error
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import message
from tests.integration.proxy import Call, Proxy, Reply
from tests.integration.test_check import check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess

DEADLINE_SECONDS = 60.0
CHOICES = ["ack", "dead-letter"]
TIMES = {"BATCH_MAX_AGE": "100ms", "ACTION": "create"}


class Taking(Proxy):
    """Answers that Elasticsearch refuses become those of a data stream whose failure store takes the documents."""

    def pass_on(self, method: str, call: Call) -> Reply:
        """Pass a request on, and change its answer."""
        reply = super().pass_on(method, call)
        if b'"items"' not in reply.body:
            return reply
        content = json.loads(reply.body)
        for item in content["items"]:
            for outcome in item.values():
                if outcome.pop("error", None) is not None:
                    outcome |= {"status": 201, "failure_store": "used"}
        return Reply(reply.status, json.dumps({**content, "errors": False}).encode(), reply.headers)


@pytest.fixture
def taking(bench: Harness) -> Iterator[Taking]:
    """Stand before the bench's Elasticsearch."""
    proxy = Taking(bench.elasticsearch.url)
    yield proxy
    proxy.close()


def make_stream(bench: Harness, *, failure_store: bool = True) -> None:
    """Install a template for a data stream whose field ``n`` is a number."""
    template = {
        "index_patterns": [f"{bench.index_name}*"],
        "data_stream": {},
        "priority": 1000,
        "template": {
            "settings": {"number_of_replicas": 0},
            "mappings": {"properties": {"n": {"type": "long"}}},
            "data_stream_options": {"failure_store": {"enabled": failure_store}},
        },
    }
    bench.es("PUT", f"/_index_template/{bench.index_name}", template)


def publish(bench: Harness, count: int) -> None:
    """Publish documents of which every fifth is refused by the mapping."""
    stamp = b'{"@timestamp":"2026-01-01T00:00:00Z","n":'
    bench.declare()
    bench.publish([message(stamp + (b'"no number"}' if at % 5 == 0 else b"%d}" % at), str(at)) for at in range(count)])


def has_failure_stores(bench: Harness) -> bool:
    """Whether the distribution knows of them."""
    try:
        bench.es("GET", "/_data_stream")
    except urllib.error.HTTPError:
        return False
    return True


def in_failure_store(bench: Harness) -> list[dict[str, Any]]:
    """Return the documents of the failure store."""
    bench.es("POST", f"/{bench.index_name}::failures/_refresh")
    found = json.loads(bench.es("GET", f"/{bench.index_name}::failures/_search?size=100"))
    return [hit["_source"] for hit in found["hits"]["hits"]]


def judge(bench: Harness, sidecar: SidecarProcess, choice: str) -> None:
    """Wait until 50 messages are settled, of which a failure store took 10, and look at what became of them."""
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert bench.stored() == 40
    told = sidecar.events("items.in_failure_store")
    assert sum(line["count"] for line in told) == 10
    assert f"{bench.index_name}::failures" in told[0]["example"]
    assert sidecar.events("sidecar.stopped")[-1]["documents"] == {"success": 40, "failure_store": 10}
    letters = bench.dead_letters()
    assert (account["dead_letter"], account["ack"]) == ((10, 40) if choice == "dead-letter" else (0, 50))
    assert [letter.headers["sidecar-reason"] for letter in letters] == ["failure-store"] * account["dead_letter"]
    assert {letter.headers["sidecar-index"] for letter in letters} <= {bench.index_name}


@pytest.mark.parametrize("choice", CHOICES)
def test_what_a_failure_store_took_is_told(bench: Harness, taking: Taking, choice: str) -> None:
    """Elasticsearch answers 201, and a search of the data stream doesn't find it: acked or dead-lettered, and told."""
    make_stream(bench)
    publish(bench, 50)
    sidecar = bench.sidecar(**TIMES, ELASTICSEARCH_URL=taking.url, ON_FAILURE_STORE=choice)
    judge(bench, sidecar, choice)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_real_failure_store(bench: Harness, choice: str) -> None:
    """The same where Elasticsearch has failure stores."""
    if not has_failure_stores(bench):
        pytest.skip("this distribution has no failure stores")
    make_stream(bench)
    publish(bench, 50)
    judge(bench, bench.sidecar(**TIMES, ON_FAILURE_STORE=choice), choice)
    assert len(in_failure_store(bench)) == 10
    assert len(check(bench, ACTION="create").about("failure store", "note")) == 1


def test_check_notes_a_failure_store(bench: Harness) -> None:
    """By the template, before the data stream is there and afterwards; off means off."""
    make_stream(bench)
    assert len(check(bench, ACTION="create").about("failure store", "note")) == 1
    assert len(check(bench, ACTION="create", INDEX=f"{bench.index_name}-{{type}}").about("failure store", "note")) == 1
    bench.es("POST", f"/{bench.index_name}/_create/1", {"@timestamp": "2026-01-01T00:00:00Z"})
    assert len(check(bench, ACTION="create").about("failure store", "note")) == 1
    if not has_failure_stores(bench):  # otherwise the data stream has its own by now
        make_stream(bench, failure_store=False)
        assert check(bench, ACTION="create").about("failure store", "note") == []


def test_without_one_they_are_refused_as_ever(bench: Harness) -> None:
    """A full distribution says `not_enabled` beside the failure: a dead letter `rejected`."""
    make_stream(bench, failure_store=False)
    publish(bench, 50)
    sidecar = bench.sidecar(**TIMES)
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    assert sidecar.terminate()["dead_letter"] == 10
    assert bench.stored() == 40
    assert {letter.headers["sidecar-reason"] for letter in bench.dead_letters()} == {"rejected"}
    assert sidecar.events("items.in_failure_store") == []
