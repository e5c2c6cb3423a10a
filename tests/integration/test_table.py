"""Every row of the contract's tables of verdicts (§6), provoked on the real Elasticsearch where it can be.

Each row says what is sent where, and what becomes of the message. Rows with the same settings share a sidecar. What
the real one can't be made to say within seconds is said by a proxy before it (`scripted`), the rest of the answer being
Elasticsearch's own. `tests.unit.test_table` holds the rows against the rules: none is without a row.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import pytest

from sidecar.core.results.policy import RequestOutcome
from tests.integration import test_refused
from tests.integration.harness import Harness, message
from tests.integration.process import wait_until
from tests.integration.proxy import Call, Proxy, Reply, as_it_is
from tests.servers.es import Elastic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_SECONDS = 60.0
ROWS_SECONDS = 20.0
QUICK = {
    "BATCH_MAX_AGE": "50ms",
    "RETRY_DELAY_MIN": "50ms",
    "RETRY_DELAY_MAX": "200ms",
    "DELAYED_RETRY_DELAY": "1s",
    "DELAYED_RETRY_MAX_ROUNDS": "1",
    "ACTION": "{header.op}",
    "INDEX": "{header.to}",
    "INDEX_ALLOW": "*",
}

# What becomes of a message: `ACK`, `WAITS` until its target is mended, or the reason of its dead letter.
ACK, WAITS = "ack", "waits"
FOR_EVER = 1_000_000

# -- Results of an item -----------------------------------------------------------------------------------------------

PROFILES = {
    "default": {},
    "other choices": {"ON_CONFLICT": "dead-letter", "ON_INDEX_MISSING": "delay", "ON_INDEX_BLOCKED": "dead-letter"},
    "hold": {"ON_INDEX_MISSING": "hold", "ON_INDEX_BLOCKED": "hold"},
    "versions": {"VERSION": "{header.version}", "ON_CONFLICT": "dead-letter"},
    "scripted": {},
}

TARGETS: dict[str, dict[str, Any]] = {
    "open": {"mappings": {"properties": {"n": {"type": "long"}}}},
    "strict": {"mappings": {"dynamic": "strict"}},
    "routed": {"mappings": {"_routing": {"required": True}}},
    "sourceless": {"mappings": {"_source": {"enabled": False}}},
    "closed": {},
    "blocked": {},
}
"""What indices are made of; those called ``absent`` and ``Bad*name`` are not made."""

SHUT = {
    "closed": ("POST", "_close", None),
    "blocked": ("PUT", "_settings", {"index.blocks.write": True}),
}
OPENED = {
    "closed": ("POST", "_open", None),
    "blocked": ("PUT", "_settings", {"index.blocks.write": None}),
    "absent": ("PUT", "", {"settings": {"number_of_replicas": 0}}),
}


@dataclass(frozen=True)
class Row:
    """One message, what Elasticsearch says of its item, and what becomes of it.

    Attributes:
        status: of the item.
        error_type: of the item; empty on success.
        verdict: `ACK`, `WAITS`, or the reason of the dead letter.
        op: the action.
        to: the kind of index.
        body: of the message.
        before: what is stored under its id before.
        after: what is stored under its id at the end.
        profile: the settings.
        version: of the message; that of `before` is 5.
        redelivered: whether the message was delivered to somebody else before.
        anonymous: without an id.
        scripted: how often the proxy says this instead of Elasticsearch.
    """

    status: int
    error_type: str
    verdict: str
    op: str = "index"
    to: str = "open"
    body: bytes = b'{"n":1}'
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    profile: str = "default"
    version: int | None = None
    redelivered: bool = False
    anonymous: bool = False
    scripted: int = 0


OLD, NEW = {"n": 0}, {"n": 1}
EXISTS = "version_conflict_engine_exception"

# fmt: off
ROWS = {
    # 200 and 201
    "created":              Row(201, "", ACK, after=NEW),
    "created by create":    Row(201, "", ACK, "create", after=NEW),
    "created by upsert":    Row(201, "", ACK, "upsert", after=NEW),
    "written again":        Row(200, "", ACK, before=OLD, after=NEW),
    "updated":              Row(200, "", ACK, "update", before={"n": 0, "m": 2}, after={"n": 1, "m": 2}),
    "updated to the same":  Row(200, "", ACK, "update", before=NEW, after=NEW),
    "deleted":              Row(200, "", ACK, "delete", body=b"", before=OLD),
    # 404 without `error` for `delete`
    "nothing to delete":    Row(404, "", ACK, "delete", body=b""),
    # 404 `document_missing_exception` for `update`
    "nothing to update":    Row(404, "document_missing_exception", "rejected", "update"),
    # 409 for `create`, or with an external version
    "exists":               Row(409, EXISTS, ACK, "create", before=OLD, after=OLD),
    "exists, told":         Row(409, EXISTS, "conflict", "create", before=OLD, after=OLD, profile="other choices"),
    "exists, redelivered":  Row(409, EXISTS, ACK, "create", before=OLD, after=OLD, profile="other choices",
                                redelivered=True),
    "newer version":        Row(200, "", ACK, before=OLD, after=NEW, profile="versions", version=6),
    "older version":        Row(409, EXISTS, "conflict", before=OLD, after=OLD, profile="versions", version=4),
    "older, redelivered":   Row(409, EXISTS, ACK, before=OLD, after=OLD, profile="versions", version=4,
                                redelivered=True),
    "older delete":         Row(409, EXISTS, "conflict", "delete", body=b"", before=OLD, after=OLD,
                                profile="versions", version=4),
    # 404 `index_not_found_exception`
    "no index":             Row(404, "index_not_found_exception", "index-missing", to="absent"),
    "no index to update":   Row(404, "index_not_found_exception", "index-missing", "update", "absent"),
    "no index to delete":   Row(404, "index_not_found_exception", "index-missing", "delete", "absent", b""),
    "no index, delayed":    Row(404, "index_not_found_exception", WAITS, to="absent", after=NEW,
                                profile="other choices"),
    "no index, held":       Row(404, "index_not_found_exception", WAITS, to="absent", after=NEW, profile="hold"),
    # 400 `index_closed_exception`, 403 `cluster_block_exception` (403 `security_exception`: test_targets)
    "closed":               Row(400, "index_closed_exception", WAITS, to="closed", after=NEW),
    "closed, held":         Row(400, "index_closed_exception", WAITS, to="closed", after=NEW, profile="hold"),
    "closed, told":         Row(400, "index_closed_exception", "index-blocked", to="closed", profile="other choices"),
    "blocked":              Row(403, "cluster_block_exception", WAITS, to="blocked", after=NEW),
    "blocked delete":       Row(403, "cluster_block_exception", WAITS, "delete", "blocked", b"", before=OLD),
    "blocked, held":        Row(403, "cluster_block_exception", WAITS, to="blocked", after=NEW, profile="hold"),
    "blocked, told":        Row(403, "cluster_block_exception", "index-blocked", to="blocked",
                                profile="other choices"),
    # other 400
    "no number":            Row(400, "document_parsing_exception", "rejected", body=b'{"n":"no"}'),
    "not JSON":             Row(400, "document_parsing_exception", "rejected", body=b'{"n":1'b'}}'),
    "strict mapping":       Row(400, "strict_dynamic_mapping_exception", "rejected", to="strict"),
    "two documents":        Row(400, "illegal_argument_exception", "rejected", body=b'{"n":1}{"n":2}'),
    "no routing":           Row(400, "routing_missing_exception", "rejected", to="routed"),
    "no source":            Row(400, "document_source_missing_exception", "rejected", "update", "sourceless",
                                before=OLD),
    "no name":              Row(400, "invalid_index_name_exception", "rejected", to="Bad*name"),

    # What the real one says when it is overloaded or broken, or races with somebody else: said by a proxy.
    # 429 by a real write pool is in test_promise, a full disk below; 503 takes Elasticsearch a minute to say; 9 has
    # document_parsing_exception where 8 has mapper_parsing_exception; 403 of a real role is in test_targets.
    "overloaded":           Row(429, "es_rejected_execution_exception", ACK, after=NEW, profile="scripted", scripted=7),
    "breaker of an item":   Row(429, "circuit_breaking_exception", ACK, after=NEW, profile="scripted", scripted=7),
    "disk full":            Row(429, "cluster_block_exception", ACK, after=NEW, profile="scripted", scripted=7),
    "shard away":           Row(503, "unavailable_shards_exception", ACK, after=NEW, profile="scripted", scripted=7),
    "race of updates":      Row(409, EXISTS, ACK, "upsert", after=NEW, profile="scripted", scripted=3),
    "endless race":         Row(409, EXISTS, "retries-exhausted", "upsert", profile="scripted", scripted=FOR_EVER),
    "breaks once":          Row(500, "null_pointer_exception", ACK, after=NEW, profile="scripted", scripted=1),
    "breaks":               Row(500, "null_pointer_exception", "retries-exhausted", profile="scripted",
                                scripted=FOR_EVER),
    "breaks without an id": Row(502, "some_exception", "retries-exhausted", anonymous=True, profile="scripted",
                                scripted=FOR_EVER),
    "old mapper":           Row(400, "mapper_parsing_exception", "rejected", profile="scripted", scripted=FOR_EVER),
    "forbidden for now":    Row(403, "security_exception", ACK, after=NEW, profile="scripted", scripted=2),
    "not in the table":     Row(418, "teapot_exception", "rejected", profile="scripted", scripted=FOR_EVER),
    "404 of an index":      Row(404, "", "rejected", profile="scripted", scripted=FOR_EVER),
}
# fmt: on


class Outcome(NamedTuple):
    """What was seen of a row's message."""

    waited: bool
    letters: list[dict[Any, Any]]
    source: dict[str, Any] | None
    tries: int


class Run(NamedTuple):
    """What was seen of a sidecar."""

    outcomes: dict[str, Outcome]
    account: dict[str, Any]
    holds: int


def document_id(name: str) -> str:
    """Return the document id of a row."""
    return name.replace(" ", "-").replace(",", "")


class Script:
    """Says in Elasticsearch's stead what the scripted rows say; all other items are Elasticsearch's."""

    def __init__(self, proxy: Proxy) -> None:
        self.said: Counter[str] = Counter()
        self._proxy = proxy
        proxy.change = self._answer
        self._by_key = {key(name, row): (name, row) for name, row in ROWS.items() if row.scripted}

    def _answer(self, call: Call) -> Reply:
        lines = call.body.split(b"\n")[:-1]
        results: list[dict[str, Any] | None] = []
        forwarded: list[bytes] = []
        while lines:
            taken, lines = lines[:2], lines[2:]
            ((verb, parameters),) = orjson.loads(taken[0]).items()
            name, row = self._by_key.get(parameters.get("_id", parameters["_index"]), ("", None))
            if row is None or self.said[name] >= row.scripted:
                forwarded += taken
                results.append(None)
                continue
            self.said[name] += 1
            error = {"type": row.error_type, "reason": "scripted"}
            results.append({verb: {"status": row.status, **({"error": error} if row.error_type else {})}})
        answered: list[dict[str, Any]] = []
        if forwarded:
            reply = self._proxy.pass_on("POST", Call(call.path, call.headers, b"\n".join(forwarded) + b"\n"))
            answered = orjson.loads(reply.body)["items"]
        items = [result if result is not None else answered.pop(0) for result in results]
        return Reply(200, orjson.dumps({"errors": True, "items": items}))


def key(name: str, row: Row) -> str:
    """Return by what the script knows a row's item."""
    return f"anonymous-{document_id(name)}" if row.anonymous else document_id(name)


class Indices:
    """The targets of all rows; ids are unlike, so profiles share them."""

    def __init__(self, client: Elastic, stem: str) -> None:
        self.client = client
        self._stem = stem

    def name(self, kind: str) -> str:
        """Return the name of an index."""
        return f"{kind}-{self._stem}"

    def make(self) -> None:
        """Make them, store what is there before, and shut those that take nothing."""
        for kind, description in TARGETS.items():
            self.client.call("PUT", f"/{self.name(kind)}", {"settings": {"number_of_replicas": 0}, **description})
        for name, row in ROWS.items():
            if row.before is not None:
                version = "?version=5&version_type=external" if row.version is not None else ""
                self.client.call("PUT", f"/{self.name(row.to)}/_doc/{document_id(name)}{version}", row.before)
        self.change(SHUT)

    def change(self, changes: dict[str, tuple[str, str, Any]]) -> None:
        """Shut or open them."""
        for kind, (method, path, body) in changes.items():
            self.client.call(method, f"/{self.name(kind)}/{path}", body)

    def source(self, name: str, row: Row) -> dict[str, Any] | None:
        """Return what is stored; closed indices and those without a name have nothing."""
        if row.to == "Bad*name" or row.anonymous:
            return None
        answer = self.client.send("GET", f"/{self.name(row.to)}/_doc/{document_id(name)}")
        found: dict[str, Any] = answer.json() if answer.status == 200 else {}
        return found.get("_source")


class Stage:
    """The queue and the sidecar of a profile."""

    def __init__(self, profile: str, bench: Harness, indices: Indices, proxy: Proxy) -> None:
        self.rows = {name: row for name, row in ROWS.items() if row.profile == profile}
        self._bench = bench
        self._indices = indices
        self._script = Script(proxy) if profile == "scripted" else None
        self._settings = {**QUICK, **PROFILES[profile], **({"ELASTICSEARCH_URL": proxy.url} if self._script else {})}

    def begin(self) -> None:
        """Fill the queue and start the sidecar."""
        bench = self._bench
        bench.declare()
        bench.publish([self._message(name, row) for name, row in self.rows.items() if row.redelivered])
        bench.amqp.peek(bench.queue)
        bench.publish([self._message(name, row) for name, row in self.rows.items() if not row.redelivered])
        self._sidecar = bench.sidecar(**self._settings)

    def _message(self, name: str, row: Row) -> Any:
        # One without an id has an index of its own, by which the script knows it.
        headers = {"op": row.op, "to": key(name, row) if row.anonymous else self._indices.name(row.to)}
        if row.version is not None:
            headers["version"] = str(row.version)
        return message(row.body, None if row.anonymous else document_id(name), headers=headers)

    def settle(self) -> None:
        """Wait until all is settled that doesn't wait for its target, and note what does."""
        letters = sum(row.verdict not in {ACK, WAITS} for row in self.rows.values())
        bench = self._bench
        self._wait(lambda: bench.count(bench.dead) >= letters and not self._missing(ACK))
        self._waiting = self._missing(ACK, WAITS)

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait for what should be; where it doesn't come about, the rows say themselves which of them it is."""
        with contextlib.suppress(AssertionError):
            wait_until(condition, ROWS_SECONDS, "all rows")

    def _missing(self, *verdicts: str) -> set[str]:
        """Return the rows whose document is not yet what it will be."""
        rows = {name: row for name, row in self.rows.items() if row.verdict in verdicts}
        return {name for name, row in rows.items() if self._indices.source(name, row) != row.after}

    def end(self) -> Run:
        """Wait for the rest, which the targets take by now, and return what was seen."""
        self._wait(lambda: not self._missing(ACK, WAITS))
        self._wait(lambda: self._bench.held() == 0)
        account = self._sidecar.terminate()
        headers: dict[Any, list[dict[Any, Any]]] = {}
        for letter in self._bench.dead_letters():
            headers.setdefault(letter.message_id, []).append(dict(letter.headers))
        outcomes = {
            name: Outcome(
                waited=name in self._waiting,
                letters=headers.get(None if row.anonymous else document_id(name), []),
                source=self._indices.source(name, row),
                tries=self._script.said[name] if self._script else 0,
            )
            for name, row in self.rows.items()
        }
        return Run(outcomes, account, len(self._sidecar.events("elasticsearch.held")))


@pytest.fixture(scope="module")
def runs(rabbitmq: Any, elasticsearch: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """All rows, a sidecar for each profile, all at the same time: starting them is most of the time."""
    proxy, stem = Proxy(elasticsearch.url), f"table-{secrets.token_hex(4)}"
    benches = {
        profile: Harness(rabbitmq, elasticsearch, f"{stem}-{document_id(profile)}", tmp_path_factory.mktemp("table"))
        for profile in PROFILES
    }
    with Elastic(elasticsearch.url) as client:
        indices = Indices(client, stem)
        stages = {profile: Stage(profile, bench, indices, proxy) for profile, bench in benches.items()}
        client.put_cluster_settings({"action.auto_create_index": "-absent-*,+*"})
        try:
            indices.make()
            for stage in stages.values():
                stage.begin()
            for stage in stages.values():
                stage.settle()
            indices.change(OPENED)
            yield {profile: stage.end() for profile, stage in stages.items()}
        finally:
            client.put_cluster_settings({"action.auto_create_index": None})
            for bench in benches.values():
                bench.close()
            proxy.close()


@pytest.mark.parametrize("name", ROWS)
def test_result_of_an_item(name: str, runs: dict[str, Run]) -> None:
    """Acked, waiting or dead-lettered as the row says, with its headers; and nothing else is stored than it says."""
    row = ROWS[name]
    outcome = runs[row.profile].outcomes[name]
    assert outcome.source == (row.after if row.to != "sourceless" else None)
    if row.verdict in {ACK, WAITS}:
        assert outcome.letters == []
        assert outcome.waited == (row.verdict == WAITS)
    else:
        (headers,) = outcome.letters
        assert headers["sidecar-reason"] == row.verdict
        assert headers["sidecar-status"] == row.status
        assert headers.get("sidecar-error-type", "") == row.error_type
        assert headers["sidecar-action"] == row.op
    if row.scripted == FOR_EVER:
        counted, rounds = row.verdict == "retries-exhausted", 1 + row.anonymous
        assert outcome.tries == (5 * rounds if counted else 1)
    elif row.scripted:
        assert outcome.tries == row.scripted


@pytest.mark.parametrize("profile", PROFILES)
def test_the_account_tells_the_same(profile: str, runs: dict[str, Run]) -> None:
    """As many acks and dead letters as the rows say; delayed is only what may not wait in place, and nothing holds."""
    run = runs[profile]
    rows = [row for row in ROWS.values() if row.profile == profile]
    dead = sum(row.verdict not in {ACK, WAITS} for row in rows)
    assert run.account["dead_letter"] == dead
    assert run.account["ack"] == len(rows) - dead
    delayed = [row for row in rows if row.verdict == WAITS and profile != "hold"]
    delayed += [row for row in rows if row.anonymous or row.error_type == "security_exception"]
    assert run.account["delay"] >= len(delayed)
    assert bool(run.account["delay"]) == bool(delayed)
    assert run.account["received"] == len(rows) + run.account["delay"]
    assert run.holds == 0


# -- Results of a whole request ---------------------------------------------------------------------------------------


class InTurn:
    """Answers bulk requests in Elasticsearch's stead, each with the next answer; None breaks the connection."""

    def __init__(self, *answers: Reply | None) -> None:
        self.said = 0
        self._answers = answers

    def __call__(self, _: Call) -> Reply | None:
        """Answer."""
        self.said += 1
        return self._answers[(self.said - 1) % len(self._answers)]

    @property
    def all_said(self) -> bool:
        """Whether each answer was given."""
        return self.said >= len(self._answers)


OUTAGES = {
    "away": InTurn(None, Reply(502, b"<html>"), Reply(503, b""), Reply(504, b"")),
    "without results": InTurn(Reply(200, b'{"errors":'), Reply(200, b'{"errors":false,"items":[]}')),
}
ELSEWHERE = {
    RequestOutcome.BISECT: test_refused.test_five_poisons_cost_nobody_else_anything,
    RequestOutcome.HOLD: test_refused.test_a_fault_of_every_request_is_nobodys,
}
HERE = {RequestOutcome.OUTCOME_UNKNOWN, RequestOutcome.THROTTLED, RequestOutcome.HOLD, RequestOutcome.SPLIT_SIZE}


def test_an_outage_and_a_breaker_cost_nobody_anything(bench: Harness, make_proxy: Callable[[str], Proxy]) -> None:
    """502, 503, 504, a lost connection, answers without results, and 429: the same items again, each stored once."""
    proxy, each = make_proxy(bench.elasticsearch.url), 20
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    settings = {**QUICK, "ACTION": "create", "INDEX": bench.index_name, "ON_CONFLICT": "dead-letter"}
    sidecar = bench.sidecar(**settings, BATCH_MAX_ITEMS="5", RETRY_MAX_ATTEMPTS="1", ELASTICSEARCH_URL=proxy.url)
    sidecar.wait_for("amqp.connected")

    def publish(wave: str) -> None:
        bench.publish([message(b'{"n":%d}' % at, f"{wave}-{at}".replace(" ", "-")) for at in range(each)])

    def arrive(count: int) -> None:
        wait_until(lambda: bench.stored() == count, DEADLINE_SECONDS, f"{count} stored", sidecar.told)

    for number, (name, outage) in enumerate(OUTAGES.items(), start=1):
        proxy.change = outage
        publish(name)
        wait_until(lambda outage=outage: outage.all_said, DEADLINE_SECONDS, name, sidecar.told)  # type: ignore[misc]
        assert len(sidecar.events("elasticsearch.held")) >= number
        proxy.change = as_it_is
        arrive(number * each)
    with Elastic(bench.elasticsearch.url) as client:
        client.put_cluster_settings({"indices.breaker.total.limit": "1mb"})
        try:
            publish("breaker")
            sidecar.wait_for("elasticsearch.throttled", DEADLINE_SECONDS)
        finally:
            client.put_cluster_settings({"indices.breaker.total.limit": None})
    arrive((len(OUTAGES) + 1) * each)
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert account["ack"] == account["received"] == each * (len(OUTAGES) + 1)
    assert {hit["_version"] for hit in bench.hits()} == {1}
    assert account["requests"].keys() <= {"stored", "partial", "unanswered", "throttled"}
    assert account["requests"]["throttled"] >= 1
    assert account["requests"]["unanswered"] >= sum(outage.said for outage in OUTAGES.values())
    assert bench.dead_letters() == []


PASSWORD = "hunter2-is-secret"
USERS = "writer:$2b$04$1k1kpkHxsulAoxTUQhuEfO9N7uYHaMhIKeheuCkVBbbN2I5yr37Ey\n"
OTHERS_USERS = "somebody:$2b$04$1k1kpkHxsulAoxTUQhuEfO9N7uYHaMhIKeheuCkVBbbN2I5yr37Ey\n"
ROLES = 'writer:\n  indices:\n    - names: ["*"]\n      privileges: ["write", "auto_configure"]\n'
NO_ROLES = 'writer:\n  indices:\n    - names: ["*"]\n      privileges: ["read"]\n'
FILES = {"users": USERS, "users_roles": "writer:writer\n", "roles.yml": ROLES}
LOCKED = {
    "resource.reload.interval.high": "250ms",
    "http.max_content_length": "200kb",
    "cluster.info.update.interval": "60m",  # or it would find room on the disk, and take the block away
}


@pytest.mark.full  # a server of its own
def test_a_request_without_rights_or_too_large_and_a_full_disk(
    make_bench: Callable[[Any, Any], Harness], rabbitmq: Any, elasticsearch_factory: Callable[..., Any]
) -> None:
    """401 and 403: a hold that says so, never a dead letter. 413: halves; what alone is too large is `too-large`.

    The block of a full disk (429 of the items): they wait in place, however long, and are stored when it is gone.
    """
    server = elasticsearch_factory(LOCKED, password=PASSWORD, files=FILES)
    if not hasattr(server, "write_config"):
        pytest.skip("roles and users are changed in the configuration folder of a native server")
    bench = make_bench(rabbitmq, server)
    bench.declare()
    login = {"ELASTICSEARCH_USERNAME": "writer", "ELASTICSEARCH_PASSWORD": PASSWORD}
    with Elastic(server.url, username="elastic", password=PASSWORD) as client:
        client.call("PUT", f"/{bench.index_name}", {"settings": {"number_of_replicas": 0}})
        sidecar = bench.sidecar(**{**QUICK, "ACTION": "index", "INDEX": bench.index_name}, **login)
        sidecar.wait_for("amqp.connected")
        stored = 0

        def publish(wave: str, bodies: list[bytes]) -> None:
            bench.publish([message(body, f"{wave}-{at}") for at, body in enumerate(bodies)])

        def arrive(count: int) -> None:
            wait_until(lambda: client.count(bench.index_name) == count, DEADLINE_SECONDS, f"{count}", sidecar.told)

        changes = (("403 security_exception", "roles.yml", NO_ROLES, ROLES), ("401 ", "users", OTHERS_USERS, USERS))
        for says, file, broken, whole in changes:
            server.write_config(file, broken)
            # Until the server has read the file again, messages are stored.
            wait_until(lambda says=says: refused(bench.elasticsearch.url, says), DEADLINE_SECONDS, says)  # type: ignore[misc]
            publish(file, [b"{}"] * 20)
            wait_until(
                lambda says=says: says in json.dumps(sidecar.events("elasticsearch.held")),  # type: ignore[misc]
                DEADLINE_SECONDS,
                says,
                sidecar.told,
            )
            assert (client.count(bench.index_name), bench.count(bench.dead)) == (stored, 0)
            server.write_config(file, whole)
            stored += 20
            arrive(stored)
        client.put_settings(bench.index_name, {"index.blocks.read_only_allow_delete": True})
        publish("disk", [b"{}"] * 20)
        sidecar.wait_for("elasticsearch.throttled", DEADLINE_SECONDS)
        assert (client.count(bench.index_name), bench.count(bench.dead)) == (stored, 0)
        client.put_settings(bench.index_name, {"index.blocks.read_only_allow_delete": None})
        stored += 20
        arrive(stored)
        good = [b'{"x":"%s"}' % (b"x" * 20_000)] * 40
        publish("large", good)
        arrive(stored + len(good))
        publish("huge", [b'{"x":"%s"}' % (b"x" * 300_000)])
        wait_until(lambda: bench.count(bench.dead) == 1, DEADLINE_SECONDS, "too large", sidecar.told)
        bench.wait_empty(DEADLINE_SECONDS, sidecar)
        account = sidecar.terminate()
        (letter,) = bench.dead_letters()
        assert letter.message_id == "huge-0"
        assert (letter.headers["sidecar-reason"], letter.headers["sidecar-status"]) == ("too-large", 413)
        assert account["ack"] == stored + len(good)
        assert account["splits"]["too_large"] >= 1
        assert account["documents"]["too_many"] >= 20
        assert account["delay"] == 0
        print(f"413: {account['requests']}, splits {account['splits']}")


def refused(url: str, says: str) -> bool:
    """Whether the user is refused with a status and a type."""
    status, _, error_type = says.partition(" ")
    with Elastic(url, username="writer", password=PASSWORD) as client:
        answer = client.send("POST", "/_bulk", b'{"delete":{"_index":"nowhere","_id":"x"}}\n')
    return answer.status == int(status) and error_type.encode() in answer.body
