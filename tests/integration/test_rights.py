"""The least rights of `deploy/`: all works with them, and each one taken away is named by `sidecar check`."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.amqp import check as amqp
from sidecar.amqp.connection import ConnectOptions
from sidecar.amqp.topology import Topology
from tests.integration.harness import message
from tests.integration.process import wait_until
from tests.integration.test_check import SECRET, Told, check, with_login
from tests.servers.es import Elastic
from tests.servers.waiting import run_coroutine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.harness import Harness

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SECONDS = 60.0
INDEX = "events"
USER = "moves-orders"
HASH = "$2b$04$1k1kpkHxsulAoxTUQhuEfO9N7uYHaMhIKeheuCkVBbbN2I5yr37Ey"
"""bcrypt of the secret: not every distribution can make users by its API, but each takes them from files."""
WRITER: dict[str, Any] = json.loads((DEPLOY / "elasticsearch" / "role.json").read_text())
TEMPLATES: dict[str, Any] = json.loads((DEPLOY / "elasticsearch" / "role-templates.json").read_text())
PRIVILEGES: list[str] = WRITER["indices"][0]["privileges"]


def without(privilege: str) -> dict[str, Any]:
    """Return the role with one right taken away."""
    kept = [granted for granted in PRIVILEGES if granted != privilege]
    return {"indices": [{**WRITER["indices"][0], "privileges": kept}]}


def user_files() -> dict[str, str]:
    """Return the files that give each role to a user of its name, and both ready ones to another."""
    roles = {"writer": WRITER, "templates": TEMPLATES, **{f"without-{name}": without(name) for name in PRIVILEGES}}
    users = {"both": ("writer", "templates"), **{name: (name,) for name in roles}}
    holders = {role: [user for user, given in users.items() if role in given] for role in roles}
    return {
        "roles.yml": "".join(f"{json.dumps(name)}: {json.dumps(role)}\n" for name, role in roles.items()),
        "users": "".join(f"{name}:{HASH}\n" for name in users),
        "users_roles": "".join(f"{role}:{','.join(names)}\n" for role, names in holders.items()),
    }


class Permissions:
    """What a user of RabbitMQ may do, by the script of `deploy/`, and with one right less."""

    def __init__(self, bench: Harness) -> None:
        self._bench = bench
        command = ["sh", str(DEPLOY / "rabbitmq" / "permissions.sh"), USER, bench.queue]
        environment = {"RABBITMQCTL": "printf %s\\n", "PATH": "/usr/bin:/bin"}
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        *_, configure, write, read = printed.splitlines()
        self.patterns = {"configure": configure, "write": write, "read": read}

    def set(self, **instead: str) -> None:
        self._bench.rabbitmq.rabbitmqctl("set_permissions", USER, *(self.patterns | instead).values())


@pytest.fixture
def permissions(bench: Harness) -> Iterator[Permissions]:
    """Return the permissions of a user who has those of the script."""
    bench.rabbitmq.rabbitmqctl("add_user", USER, SECRET)
    given = Permissions(bench)
    given.set()
    yield given
    bench.rabbitmq.rabbitmqctl("delete_user", USER)


def test_each_right_on_rabbitmq_that_is_missing_is_named(bench: Harness, permissions: Permissions) -> None:
    """With queues that are absent and with those that are there; nothing is made or taken by looking."""
    url = with_login(bench.rabbitmq.amqp_url, f"{USER}:{SECRET}")
    queues = (f"queue '{bench.queue}'", f"queue '{bench.dead}'", f"queue '{bench.queue}.delay.10000'")

    def lacks(**more: str) -> set[tuple[str, str]]:
        topology = Topology(queues=(bench.queue,), **more)  # type: ignore[arg-type]
        findings = run_coroutine(amqp.check((url,), ConnectOptions(), topology, "dead-letter"))
        found = ((re.search(r"lacks (\w+)", finding.what), finding.where) for finding in findings)
        return {(right[1], where) for right, where in found if right is not None}

    assert lacks() == set()
    permissions.set(configure="^$")
    assert lacks() == {("configure", queue) for queue in queues}
    permissions.set(write="^$")
    assert lacks() == {("write", "the default exchange")}
    permissions.set(read="^$")
    assert lacks() == {("read", queue) for queue in queues}
    assert bench.amqp.queue_state(bench.queue) is None
    assert bench.amqp.queue_state(bench.dead) is None
    bench.declare()
    bench.publish([message(b"{}", "1")])
    assert ("read", queues[0]) in lacks()
    assert bench.count() == 1
    # An exchange takes more than the script gives.
    permissions.set()
    exchanges = {"exchange": "amq.direct", "dead_letter_exchange": "amq.fanout"}
    assert lacks(**exchanges) == {("write", queues[0]), ("write", "dead-letter exchange 'amq.fanout'")}
    permissions.set(write=f"{permissions.patterns['write']}|^amq.fanout$|^{bench.queue}$")
    assert lacks(**exchanges) == {("read", "exchange 'amq.direct'")}
    absent = "absent-exchange"
    permissions.set(write=".*", read=".*")
    assert lacks(exchange=absent) == {("configure", f"exchange {absent!r}")}
    permissions.set(configure=".*", write=".*", read=".*")
    assert lacks(exchange=absent) == set()
    bench.amqp.delete_queue(bench.queue)


@pytest.mark.full  # a server of its own, and many processes
def test_least_rights_are_enough_and_each_one_is_needed(
    bench: Harness,
    make_bench: Callable[..., Harness],
    permissions: Permissions,
    elasticsearch_factory: Callable[..., Any],
) -> None:
    """Templates installed, documents with fields of their own stored, one refused, one delayed: as these users.

    Then `check` says nothing of rights, and names each one that is taken away.
    """
    cluster = elasticsearch_factory(password=SECRET, files=user_files())
    secured = make_bench(bench.rabbitmq, cluster)
    as_user = {"AMQP_URL": with_login(bench.rabbitmq.amqp_url, f"{USER}:{SECRET}"), "INDEX": INDEX}

    def login(user: str) -> dict[str, str]:
        return as_user | {"ELASTICSEARCH_USERNAME": user, "ELASTICSEARCH_PASSWORD": SECRET}

    def told(user: str, **settings: str) -> Told:
        return check(secured, **login(user) | settings)

    # The demo's template, but of an index: a data stream is looked at below.
    mappings = secured.folder / "mappings"
    mappings.mkdir()
    template = json.loads((DEPLOY.parent / "mappings" / "events.json").read_text(encoding="utf-8"))
    template = {name: value for name, value in template.items() if name not in {"data_stream", "composed_of"}}
    (mappings / "events.json").write_text(json.dumps(template), encoding="utf-8")
    # Before the index is there, it takes a right to create it.
    assert told("both", MAPPINGS_DIR=str(mappings), MAPPINGS_APPLY="true").about("lacks") == []
    assert len(told("without-auto_configure").about("lacks auto_configure", "problem")) == 1
    (finding,) = told("writer", MAPPINGS_DIR=str(mappings), MAPPINGS_APPLY="true").about("lacks")
    assert "lacks manage_index_templates" in finding["what"]

    sidecar = secured.sidecar(
        **login("both") | {"INDEX": "{header.index|" + INDEX + "}"},
        MAPPINGS_DIR=str(mappings),
        MAPPINGS_APPLY="true",
        DELAYED_RETRY_DELAY="10s",
    )
    sidecar.wait_for("amqp.consuming")
    secured.publish(
        [
            *(message(b'{"sequence":%d,"new_field_%d":1}' % (at, at), str(at)) for at in range(10)),
            message(b'{"sequence":"no number"}', "bad"),
            message(b"{}", "elsewhere", headers={"index": "not-granted"}),
        ]
    )
    secured.wait_empty(SECONDS, sidecar)
    wait_until(lambda: secured.count(secured.dead) == 1, SECONDS, "a dead letter", sidecar.told)
    account = sidecar.terminate()
    assert (account["ack"], account["dead_letter"], account["delay"]) == (10, 1, 1)
    with Elastic(cluster.url, username="elastic", password=SECRET) as client:
        assert client.count(INDEX) == 10
        assert client.call("GET", f"/_index_template/{INDEX}")["index_templates"]

    # As long as everything is there, nothing is said of rights; then each that is missing is.
    good = told("writer")
    assert (good.status, good.about("lacks"), good.about("can't be seen by this user")) == (0, [], [])
    assert len(told("without-index").about("lacks index", "problem")) == 1
    assert len(told("without-auto_configure").about("lacks auto_configure", "note")) == 1
    assert len(told("without-view_index_metadata").about("view_index_metadata", "note")) == 1
    deleting = told("writer", ACTION="{header.action|index}")
    assert len(deleting.about("lacks delete", "warning")) == 1
    # A data stream lets nobody bring a field without that right; an index does.
    stream = f"{INDEX}-stream"
    with Elastic(cluster.url, username="elastic", password=SECRET) as client:
        client.put_template(stream, [stream], data_stream={})
        client.call("POST", f"/{stream}/_create/1", {"@timestamp": "2026-01-01T00:00:00Z"})
    with Elastic(cluster.url, username="without-auto_configure", password=SECRET) as client:
        lines = b'{"create":{"_index":"%s"}}\n{"@timestamp":"2026-01-01T00:00:00Z","unheard_of":1}\n' % stream.encode()
        lines += b'{"create":{"_index":"%s"}}\n{"unheard_of":1}\n' % INDEX.encode()
        assert [item["create"]["status"] for item in client.bulk(lines).json()["items"]] == [403, 201]
    lacking = told("without-auto_configure", INDEX=stream, ACTION="create")
    assert len(lacking.about("lacks auto_configure", "warning")) == 1
    for queue in (secured.queue, secured.dead, f"{secured.queue}.delay.10000"):
        bench.amqp.delete_queue(queue)
