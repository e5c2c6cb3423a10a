"""Targets that take nothing: the others don't notice, nothing is lost, and what waits flows when they are opened."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.harness import message
from tests.integration.process import wait_until
from tests.servers.es import Elastic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess
    from tests.integration.proxy import Proxy

DEADLINE_SECONDS = 60.0
PASSWORD = "hunter2-is-secret"
TARGETS = [f"target-{at}" for at in range(10)]
BLOCKED, FORBIDDEN = TARGETS[3], TARGETS[7]
OPEN = [target for target in TARGETS if target not in (BLOCKED, FORBIDDEN)]
EACH = 500
MOST_TIMES_SLOWER = 10.0  # a target that stops others costs far more; a busy machine has cost 3.7
RELOAD = {"resource.reload.interval.high": "250ms"}
FILES = {
    # bcrypt of the password, since not every distribution can make users by its API
    "users": "writer:$2b$04$1k1kpkHxsulAoxTUQhuEfO9N7uYHaMhIKeheuCkVBbbN2I5yr37Ey\n",
    "users_roles": "writer:writer\n",
}


def role(targets: list[str]) -> str:
    """Return the file of a role that may write to targets."""
    names = ", ".join(f'"{target}"' for target in targets)
    return f'writer:\n  indices:\n    - names: [{names}]\n      privileges: ["write"]\n'


# -- Two of ten -------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(elasticsearch_factory: Callable[..., Any]) -> Any:
    """An Elasticsearch with a user that may write to nine of ten targets."""
    roles = role([target for target in TARGETS if target != FORBIDDEN])
    server = elasticsearch_factory(RELOAD, password=PASSWORD, files={**FILES, "roles.yml": roles})
    if not hasattr(server, "write_config"):
        pytest.skip("a role is changed in the configuration folder of a native server")
    return server


@pytest.fixture
def owner(guarded: Any) -> Iterator[Elastic]:
    """A client that may do all; the targets are there, and one is write-blocked."""
    with Elastic(guarded.url, username="elastic", password=PASSWORD) as client:
        for target in TARGETS:
            client.call("PUT", f"/{target}", {"settings": {"number_of_shards": 1, "number_of_replicas": 0}})
        client.put_settings(BLOCKED, {"index.blocks.write": True})
        yield client


def written(owner: Elastic) -> int:
    """Return how many documents all targets were given, refreshed or not."""
    answer = owner.call("GET", "/target-*/_stats/indexing?filter_path=_all.primaries.indexing.index_total")
    total: int = answer["_all"]["primaries"]["indexing"]["index_total"]
    return total


def store(bench: Harness, owner: Elastic, sidecar: SidecarProcess, wave: str, targets: list[str]) -> float:
    """Publish as many messages to each of `targets`, mixed; return the seconds until the open ones have theirs."""
    goal = written(owner) + EACH * len(OPEN)
    began = time.monotonic()
    bench.publish(
        [message(b'{"n":%d}' % at, f"{wave}-{at}", headers={"to": target}) for at in range(EACH) for target in targets]
    )
    wait_until(lambda: written(owner) >= goal, DEADLINE_SECONDS, f"{wave} stored", sidecar.told)
    return time.monotonic() - began


@pytest.mark.full  # a server of its own
def test_a_forbidden_and_a_blocked_target_slow_nobody_down(
    make_bench: Callable[[Any, Any], Harness], rabbitmq: Any, guarded: Any, owner: Elastic
) -> None:
    """Eight of ten flow as fast as without the two; what is for those waits, and flows when they are opened."""
    bench = make_bench(rabbitmq, guarded)
    bench.declare()
    sidecar = bench.sidecar(
        ELASTICSEARCH_USERNAME="writer",
        ELASTICSEARCH_PASSWORD=PASSWORD,
        INDEX="{header.to}",
        DELAYED_RETRY_DELAY="2s",
        BATCH_MAX_AGE="100ms",
    )
    sidecar.wait_for("amqp.connected")
    store(bench, owner, sidecar, "first", OPEN)  # nobody's first thousand is fast
    alone = store(bench, owner, sidecar, "alone", OPEN)
    mixed = store(bench, owner, sidecar, "mixed", TARGETS)
    beside = store(bench, owner, sidecar, "beside", OPEN)  # the two go round by the delay queue meanwhile
    print(
        f"{EACH * len(OPEN)} messages to eight targets: {alone:.2f} s alone, {mixed:.2f} s mixed with those to the two "
        f"({mixed / alone:.2f} times), {beside:.2f} s while those wait ({beside / alone:.2f} times)"
    )
    assert mixed < alone * MOST_TIMES_SLOWER
    assert beside < alone * MOST_TIMES_SLOWER
    assert not sidecar.events("elasticsearch.held")
    assert not sidecar.events("elasticsearch.throttled")
    assert (owner.count(BLOCKED), owner.count(FORBIDDEN)) == (0, 0)
    owner.put_settings(BLOCKED, {"index.blocks.write": False})
    guarded.write_config("roles.yml", role(TARGETS))
    for target in (BLOCKED, FORBIDDEN):
        wait_until(lambda target=target: owner.count(target) == EACH, DEADLINE_SECONDS, target, sidecar.told)  # type: ignore[misc]
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert {target: owner.count(target) for target in TARGETS} == {
        target: 4 * EACH if target in OPEN else EACH for target in TARGETS
    }
    assert account["ack"] == EACH * (4 * len(OPEN) + 2)
    assert account["delay"] >= 2 * EACH
    assert account["received"] == account["ack"] + account["delay"]
    assert bench.count(f"{bench.queue}.delay.2000") == 0
    assert bench.dead_letters() == []


# -- A mapping that refuses everything --------------------------------------------------------------------------------

REFUSED, GUARD = 1_500, 1_000


def refuse_all(bench: Harness) -> None:
    """Fill the queue with what the index refuses."""
    bench.es("PUT", f"/{bench.index_name}", {"mappings": {"dynamic": "strict", "properties": {}}})
    bench.declare()
    bench.publish([message(b'{"word":"w"}', str(at)) for at in range(REFUSED)])


def test_the_guard_holds_after_exactly_a_thousand(
    bench: Harness,
    make_proxy: Callable[[str], Proxy],
) -> None:
    """By default: a thousand dead letters and not one more, however many probes; the others go back to the queue."""
    proxy = make_proxy(bench.elasticsearch.url)
    refuse_all(bench)
    sidecar = bench.sidecar(ELASTICSEARCH_URL=proxy.url)
    reason = sidecar.wait_for("elasticsearch.held")["reason"]
    assert f"{GUARD} documents in a row were refused: strict_dynamic_mapping_exception" in reason
    wait_until(lambda: bench.count(bench.dead) == GUARD, DEADLINE_SECONDS, "a thousand dead letters", sidecar.told)
    calls = proxy.calls
    wait_until(lambda: proxy.calls >= calls + 2, DEADLINE_SECONDS, "two probes", sidecar.told)
    account = sidecar.terminate()
    assert (account["dead_letter"], account["requeue"], account["ack"]) == (GUARD, REFUSED - GUARD, 0)
    letters = {letter.message_id for letter in bench.dead_letters()}
    left = {letter.message_id for letter in bench.amqp.drain(bench.queue)}
    assert (len(letters), len(left)) == (GUARD, REFUSED - GUARD)
    assert letters | left == {str(at) for at in range(REFUSED)}
    assert bench.stored() == 0


def test_without_the_guard_all_are_dead_lettered(bench: Harness) -> None:
    """SIDECAR_REJECT_GUARD=0: each refused message is a dead letter, and nothing holds."""
    refuse_all(bench)
    sidecar = bench.sidecar(REJECT_GUARD="0")
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert (account["received"], account["dead_letter"]) == (REFUSED, REFUSED)
    letters = bench.dead_letters()
    assert {letter.message_id for letter in letters} == {str(at) for at in range(REFUSED)}
    assert {letter.headers["sidecar-reason"] for letter in letters} == {"rejected"}
    assert not sidecar.events("elasticsearch.held")
    assert bench.stored() == 0
