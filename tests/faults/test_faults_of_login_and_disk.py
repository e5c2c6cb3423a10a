"""What an operator breaks or forgets: a password, room on a disk, a broker's memory. Messages wait; none is buried."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import obtain
from tests.faults.harness import DEADLINE_SECONDS, OUTAGE_REQUESTS, FaultHarness, numbered
from tests.faults.proxy import Proxy
from tests.integration.harness import message
from tests.integration.process import wait_until
from tests.servers.es import Elastic
from tests.servers.provider import own_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


USER = "pikachu"
OLD, NEW = "the-old-secret", "the-new-secret"
DISK_BLOCK = "blocks.read_only_allow_delete"
HELD_SECONDS = 60.0
WATERMARK = "0.4"
ALARM_SECONDS = [
    pytest.param(5.0, id="short"),
    # Longer than a confirm is waited for: what timed out must not be published twice.
    pytest.param(45.0, id="long", marks=pytest.mark.full),
]


def users_file(password: str) -> str:
    """Return Elasticsearch's file of users, with one."""
    salt = b"salt".ljust(32, b".")
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 10_000, 32)
    return f"{USER}:{{PBKDF2}}10000${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


@pytest.fixture
def locked(breakable_broker: Any, unique_name: str, tmp_path: Path) -> Iterator[FaultHarness]:
    """Return a scene whose Elasticsearch knows a user by a file, and lets in who shows no password at all."""
    settings = {
        "xpack.security.authc.anonymous.username": "test",
        "xpack.security.authc.anonymous.roles": "superuser",
        "resource.reload.interval.high": "500ms",
    }
    files = {"users": users_file(OLD), "users_roles": f"superuser:{USER}\n"}
    cluster = obtain(lambda: own_cluster(settings, password="of-nobody", files=files))
    http, amqp = Proxy(cluster.url, http=True), Proxy(breakable_broker.amqp_url)
    harness = FaultHarness(breakable_broker, cluster, unique_name, tmp_path, http=http, amqp=amqp)
    yield harness
    harness.close()
    http.close()
    amqp.close()
    cluster.close()


def test_a_password_is_wrong_and_put_right_and_changed_and_changed_back(locked: FaultHarness) -> None:
    """A wrong one at the start: nothing is consumed. One that is changed later: a hold. Both end by themselves."""
    cluster = locked.elasticsearch
    if not hasattr(cluster, "write_config"):
        pytest.skip("the file of users can't be changed in a container")
    locked.create_index({"at": {"type": "long"}})
    locked.declare()
    locked.publish_more(500)
    sidecar = locked.sidecar(ELASTICSEARCH_USERNAME=USER, ELASTICSEARCH_PASSWORD=NEW, BATCH_MAX_ITEMS="100")
    unreachable = sidecar.wait_for("elasticsearch.unreachable")
    assert "401" in unreachable["reason"]
    sidecar.wait_for("amqp.connected")
    assert sidecar.events("amqp.consuming") == []
    assert locked.count() == 500
    cluster.write_config("users", users_file(NEW))
    locked.wait_all_stored(sidecar)

    cluster.write_config("users", users_file(OLD))
    wait_until(lambda: not accepts(cluster.url, NEW), DEADLINE_SECONDS, "the password is wrong now")
    began_at = time.monotonic()
    locked.publish_more(500)
    held = sidecar.wait_for("elasticsearch.held")
    assert "401" in held["reason"]
    time.sleep(5.0)  # so long the outage lasts
    assert locked.held() == 500
    requests = locked.http.count(began_at, time.monotonic())
    cluster.write_config("users", users_file(NEW))
    locked.wait_all_stored(sidecar)
    print(f"{requests} requests while the password was wrong")
    assert requests < OUTAGE_REQUESTS
    account = sidecar.terminate()
    locked.judge(account, most_rewritten=0)
    assert account["received"] == 1000
    assert OLD not in sidecar.log.read_text()
    assert NEW not in sidecar.log.read_text()


def accepts(url: str, password: str) -> bool:
    """Whether Elasticsearch takes the user's password."""
    with Elastic(url, username=USER, password=password) as client:
        return client.send("GET", "/_security/_authenticate").status == 200


def block_index(harness: FaultHarness, *, on: bool) -> None:
    harness.es("PUT", f"/{harness.index_name}/_settings", {f"index.{DISK_BLOCK}": on or None})


def block_cluster(harness: FaultHarness, *, on: bool) -> None:
    harness.es("PUT", "/_cluster/settings", {"persistent": {f"cluster.{DISK_BLOCK}": on or None}})


@pytest.mark.parametrize("block", [block_index, pytest.param(block_cluster, marks=pytest.mark.full)])
def test_a_disk_at_its_flood_stage(harness: FaultHarness, block: Callable[..., None]) -> None:
    """Elasticsearch takes nothing for lack of room: all waits, with few requests, and is stored when there is room."""
    count = 500
    harness.create_index({"at": {"type": "long"}})
    harness.declare()
    harness.publish_more(count)
    sidecar = harness.sidecar(BATCH_MAX_ITEMS="100")
    harness.wait_all_stored(sidecar)
    block(harness, on=True)
    began_at = time.monotonic()
    try:
        harness.publish_more(count)
        wait_until(lambda: harness.count() == 0, DEADLINE_SECONDS, "deliveries", sidecar.told)
        sidecar.wait_for("elasticsearch.held", HELD_SECONDS)
        time.sleep(5.0)  # so long the disk is full
        assert harness.stored() == count
        assert harness.held() == count
        requests = harness.http.count(began_at, time.monotonic())
        seconds = time.monotonic() - began_at
    finally:
        block(harness, on=False)
    harness.wait_all_stored(sidecar)
    account = sidecar.terminate()
    print(f"{requests} requests in {seconds:.1f} s without room; {account}")
    harness.judge(account, most_rewritten=0)
    assert account["requeue"] == account["delay"] == 0
    # Until nothing has succeeded for so long that it counts as an outage there are some more.
    assert requests < 2 * OUTAGE_REQUESTS


@pytest.mark.parametrize("seconds", ALARM_SECONDS)
def test_a_resource_alarm_while_there_are_rejects(harness: FaultHarness, seconds: float) -> None:
    """Good ones are stored and acked all the while; each bad one is one dead letter when the alarm is over."""
    count, every = 1000, 10
    harness.create_index({"at": {"type": "long"}})
    harness.declare()
    bad = {f"bad-{at}": b"no json %d" % at for at in range(count // every)}
    mixed = numbered(range(count))
    for position, (document_id, body) in enumerate(bad.items()):
        mixed.insert(position * (every + 1), message(body, document_id))
    harness.publish(mixed)
    harness.published = count
    harness.rabbitmq.rabbitmqctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        sidecar = harness.sidecar(BATCH_MAX_ITEMS="100")
        wait_until(lambda: harness.stored() == count, DEADLINE_SECONDS, "the good ones", sidecar.told)
        wait_until(lambda: harness.held() == len(bad), DEADLINE_SECONDS, "their acks", sidecar.told)
        held = sidecar.wait_for("dead_letters.held")
        time.sleep(seconds)  # so long the alarm lasts
        assert harness.held() == len(bad)
        assert sidecar.process.poll() is None
    finally:
        harness.rabbitmq.rabbitmqctl("set_vm_memory_high_watermark", WATERMARK)
    wait_until(lambda: harness.held() == 0, DEADLINE_SECONDS, "dead letters", sidecar.told)
    account = sidecar.terminate()
    print(f"told: {held['reason']}; {account}")
    assert account["ack"] == count
    assert account["dead_letter"] == len(bad)
    assert account["stale"] == 0
    assert sorted(letter.body for letter in harness.dead_letters()) == sorted(bad.values())
    assert harness.stored() == count
