"""Requests that Elasticsearch refuses as a whole: for one item's sake, or for a fault that no item has."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from devstack import provision
from devstack.elasticsearch import QUICK_JAVA_OPTIONS, Elasticsearch
from tests.conftest import obtain
from tests.integration.harness import message
from tests.integration.process import wait_until
from tests.integration.proxy import Call, Reply, as_it_is
from tests.integration.test_logins import OLD_VERSION, old_install, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.harness import Harness
    from tests.integration.proxy import Proxy

SEED = 20_260_314
GOOD, BATCH = 5_000, 1_000
DEADLINE_SECONDS = 30.0
QUICK = {"BATCH_MAX_AGE": "50ms", "RETRY_DELAY_MIN": "50ms", "RETRY_DELAY_MAX": "500ms"}


# -- One item's fault -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Poison:
    """A message that the sidecar has no reason to refuse, and for which Elasticsearch refuses a whole request."""

    body: bytes
    error_type: str
    says: str
    index: str | None = None


# The parser that reads an update's ``doc`` as part of the request is stricter than the one that reads a document, and
# date math in a name is resolved before any item is looked at.
POISONS = {
    "key-twice": Poison(b'{"a":1,"\\u0061":2}', "x_content_parse_exception", "Duplicate field"),
    "deep": Poison(
        b'{"a":' + b"[" * 1_001 + b"]" * 1_001 + b"}", "x_content_parse_exception", "Document nesting depth (1001)"
    ),
    "long-number": Poison(b'{"a":' + b"7" * 1_001 + b"}", "x_content_parse_exception", "Number value length (1001)"),
    "unknown-unit": Poison(b'{"a":1}', "parse_exception", "not supported for date math", "<a-{now/q}>"),
    "open-brace": Poison(b'{"a":1}', "parse_exception", "placeholder is open ended", "<a-{now/d>"),
}


def test_five_poisons_cost_nobody_else_anything(bench: Harness) -> None:
    """Each makes Elasticsearch refuse a whole request; each is found by halving and is a dead letter with its reason.

    Five thousand others are stored, each once, with as many requests as the halving of five batches takes.
    """
    rng = random.Random(SEED)
    good = {f"good-{at}": {"n": at} for at in range(GOOD)}
    mail = [message(b'{"n":%d}' % at, f"good-{at}", headers={"to": bench.index_name}) for at in range(GOOD)]
    for name, poison in POISONS.items():
        headers = {"to": poison.index or bench.index_name}
        mail.insert(rng.randrange(len(mail)), message(poison.body, name, headers=headers))
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    bench.publish(mail)
    sidecar = bench.sidecar(
        RETRY_DELAY_MIN="50ms", ACTION="upsert", INDEX="{header.to}", INDEX_ALLOW="*", BATCH_MAX_ITEMS=str(BATCH)
    )
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    hits = {hit["_id"]: hit for hit in bench.hits()}
    assert {document_id: hit["_source"] for document_id, hit in hits.items()} == good
    # What was stored before its request was refused, and sent again, changed nothing.
    assert {hit["_version"] for hit in hits.values()} == {1}
    letters = {letter.message_id: letter for letter in bench.dead_letters()}
    assert letters.keys() == POISONS.keys()
    for name, poison in POISONS.items():
        headers = letters[name].headers
        assert letters[name].body == poison.body
        assert headers["sidecar-reason"] == "rejected"
        assert headers["sidecar-status"] == 400
        assert headers["sidecar-error-type"] == poison.error_type
        assert poison.says in headers["sidecar-error-reason"], headers["sidecar-error-reason"]
    assert (account["ack"], account["dead_letter"]) == (GOOD, len(POISONS))
    requests, batches = sum(account["requests"].values()), sum(account["batches"].values())
    most = batches + len(POISONS) * (2 * math.ceil(math.log2(BATCH)) + 2)
    print(f"seed {SEED}: {requests} requests for {batches} batches with {len(POISONS)} poisons (at most {most})")
    print(f"requests {account['requests']}, splits {account['splits']}")
    assert requests <= most


# -- Nobody's fault ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What happens to every request, and what the sidecar says of it."""

    change: Callable[[Call], Call | Reply]
    says: str
    probes: int = 0
    """How many probes are let fail before it is mended."""


FAULTS = {
    "a path that Elasticsearch doesn't have": Fault(
        lambda call: replace(call, path=f"/nowhere{call.path}"), "400: no handler found for uri"
    ),
    "a path that is only for reading": Fault(
        lambda call: replace(call, path="/_cluster/health/_bulk"), "405: Incorrect HTTP method for uri"
    ),
    "a path of somebody else": Fault(
        lambda call: Reply(404, b"<html>not here</html>", {"content-type": "text/html"}),
        "404: the answer is not one of Elasticsearch's",
    ),
    "a media type of a later version": Fault(
        lambda call: with_version(call, 99), "400 media_type_header_exception: "
    ),
    "a parameter that nobody knows": Fault(
        lambda call: replace(call, path=f"{call.path}&nonsense=1"), "400 illegal_argument_exception: request ["
    ),
    # This one looks like an item's fault: it is halved, and still nobody is blamed.
    "the last line break lost on the way": Fault(
        lambda call: replace(call, body=call.body[:-1]),
        "400 illegal_argument_exception: The bulk request must be terminated by a newline",
        probes=1,
    ),
}  # fmt: skip


def with_version(call: Call, version: int) -> Call:
    """Have a request ask for a version of the API."""
    headers = {
        name: value.replace("compatible-with=8", f"compatible-with={version}") for name, value in call.headers.items()
    }
    assert headers != call.headers
    return replace(call, headers=headers)


def suffer(bench: Harness, proxy: Proxy, each: int = 40) -> None:
    """Have each fault befall every request: a hold that names it, nothing dead-lettered, and all flows when it ends."""
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    sidecar = bench.sidecar(**QUICK, ELASTICSEARCH_URL=proxy.url)
    sidecar.wait_for("amqp.connected")
    for number, (name, fault) in enumerate(FAULTS.items(), start=1):
        proxy.change = fault.change
        stored = each * (number - 1)
        bench.publish([message(b'{"n":%d}' % at, f"{number}-{at}") for at in range(each)])
        wait_until(
            lambda number=number: len(sidecar.events("elasticsearch.held")) == number,  # type: ignore[misc]
            DEADLINE_SECONDS,
            f"a hold for {name}",
            sidecar.told,
        )
        assert fault.says in sidecar.events("elasticsearch.held")[-1]["reason"], name
        calls = proxy.calls + fault.probes
        wait_until(lambda calls=calls: proxy.calls >= calls, DEADLINE_SECONDS, "probes", sidecar.told)  # type: ignore[misc]
        assert bench.stored() == stored, name
        assert bench.count(bench.dead) == 0, name
        proxy.change = as_it_is
        wait_until(
            lambda stored=stored: bench.stored() == stored + each,  # type: ignore[misc]
            DEADLINE_SECONDS,
            f"the end of {name}",
            sidecar.told,
        )
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    print(f"{len(FAULTS)} faults of every request: {account['requests']}, splits {account['splits']}")
    assert account["ack"] == account["received"] == each * len(FAULTS)
    assert len(sidecar.events("elasticsearch.resumed")) == len(FAULTS)
    assert not sidecar.events("items.rejected")
    assert bench.dead_letters() == []


def test_a_fault_of_every_request_is_nobodys(bench: Harness, make_proxy: Callable[[str], Proxy]) -> None:
    """Refused paths, parameters, media types and bodies: held, said why, nothing dead-lettered; then all flows."""
    suffer(bench, make_proxy(bench.elasticsearch.url))


@pytest.mark.full  # a server of its own
def test_a_fault_of_every_request_is_nobodys_for_the_version_before(
    make_bench: Callable[[Any, Any], Harness],
    rabbitmq: Any,
    make_proxy: Callable[[str], Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same on 8.19, which has words of its own for some; it refuses the media type of version 9, too."""
    install = obtain(old_install)
    monkeypatch.setattr(provision, "require_elasticsearch", lambda: install)
    server = obtain(lambda: start(lambda: Elasticsearch(java_options=QUICK_JAVA_OPTIONS)))
    try:
        assert server.version == OLD_VERSION
        later = Fault(lambda call: with_version(call, 9), "400 media_type_header_exception: ")
        monkeypatch.setitem(FAULTS, "a media type of the version after", later)
        suffer(make_bench(rabbitmq, server), make_proxy(server.url))
    finally:
        server.close()
