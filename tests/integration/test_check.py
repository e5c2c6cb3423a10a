"""`sidecar check` on real servers: each finding that can be provoked, and nothing changed by looking."""

from __future__ import annotations

import json
import os
import threading
import urllib.error
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.integration.harness import QUORUM, Harness
from tests.integration.process import run_sidecar

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

DEAD: dict[Any, Any] = dict(QUORUM)
SECRET = "hunter2-is-secret"
NOBODY = "127.0.0.1:1"
EXACTLY_ONE = {"ID": "{header.id}"}
"""Defaults have no trap, but that a message may come without an id."""


class Told(NamedTuple):
    """What the command said."""

    status: int
    findings: list[dict[str, str]]
    errors: str

    def about(self, word: str, severity: str | None = None) -> list[dict[str, str]]:
        """Return the findings whose place or sentence holds a word."""
        return [
            finding
            for finding in self.findings
            if word in f"{finding['where']}: {finding['what']}" and severity in {None, finding["severity"]}
        ]

    @property
    def worse(self) -> list[dict[str, str]]:
        """All but the notes."""
        return [finding for finding in self.findings if finding["severity"] != "note"]


def command(bench: Harness, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``sidecar check`` to its end."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("SIDECAR_")}
    environment = inherited | bench.settings(**(EXACTLY_ONE | settings))
    return run_sidecar("check", *arguments, environment=environment, seconds=60.0)


def check(bench: Harness, **settings: str) -> Told:
    """Return what the check says; it never ends in a traceback, nor tells a secret."""
    done = command(bench, "--format", "json", **settings)
    assert "Traceback" not in done.stderr, done.stderr
    assert SECRET not in done.stdout + done.stderr
    told = Told(done.returncode, json.loads(done.stdout)["findings"], done.stderr)
    assert told.status == (1 if any(finding["severity"] == "problem" for finding in told.findings) else 0)
    assert told.errors == ""
    assert all(finding["what"] and finding["fix"] for finding in told.findings)
    return told


@pytest.fixture
def ready(bench: Harness) -> Iterator[Harness]:
    """A bench with all that the sidecar needs; what a test adds under its name is removed."""
    bench.declare()
    bench.amqp.declare_queue(bench.dead, DEAD)
    bench.create_index({"n": {"type": "long"}})
    yield bench
    for queue in (bench.queue, bench.dead):
        bench.amqp.delete_queue(queue)


@pytest.fixture
def template(bench: Harness) -> Iterator[Callable[..., None]]:
    """Return a function that installs an index template for the bench's index."""

    def install(**content: Any) -> None:
        body = {"index_patterns": [f"{bench.index_name}*"], "priority": 500, **content}
        bench.es("PUT", f"/_index_template/{bench.index_name}", body)

    yield install
    with suppress(urllib.error.HTTPError):  # in use by a data stream, which some distributions can't delete
        bench.es("DELETE", f"/_index_template/{bench.index_name}*")


def with_login(url: str, login: str) -> str:
    return f"amqp://{login}@{url.rpartition('@')[2]}"


# -- Both sides -------------------------------------------------------------------------------------------------------


def test_all_is_well(ready: Harness) -> None:
    """Nothing but what AMQP can't tell; exit 0."""
    told = check(ready)
    assert (told.status, told.worse) == (0, [])
    assert [finding["what"][:20] for finding in told.findings] == ["the consumer timeout"]


def test_servers_that_cannot_be_reached_get_a_sentence_each(bench: Harness) -> None:
    """Every URL of both sides, without a secret; exit 1."""
    urls = {
        "AMQP_URL": f"amqp://user:{SECRET}@{NOBODY}/,amqps://user:{SECRET}@{NOBODY}/,amqp://user:{SECRET}@x.invalid/",
        "ELASTICSEARCH_URL": f"http://user:{SECRET}@{NOBODY},https://user:{SECRET}@{NOBODY}",
    }
    told = check(bench, **urls)
    assert told.status == 1
    assert len(told.about("RabbitMQ can't be reached", "problem")) == 3
    assert len(told.about("Elasticsearch can't be reached", "problem")) == 2
    as_text = command(bench, **urls)
    assert as_text.returncode == 1
    assert as_text.stdout.count("problem  ") == as_text.stdout.splitlines()[-1].count("5 problems") * 5
    assert SECRET not in as_text.stdout + as_text.stderr


def test_one_of_several_urls_that_is_away_is_only_a_warning(ready: Harness) -> None:
    """Others do its work."""
    told = check(
        ready,
        AMQP_URL=f"amqp://guest:guest@{NOBODY}/,{ready.rabbitmq.amqp_url}",
        ELASTICSEARCH_URL=f"http://{NOBODY},{ready.elasticsearch.url}",
    )
    assert told.status == 0
    assert len(told.worse) == 2
    assert len(told.about(NOBODY, "warning")) == 2


def test_one_side_away_does_not_hide_the_other(ready: Harness) -> None:
    """Both are looked at, whatever the other says."""
    ready.amqp.delete_queue(ready.queue)
    told = check(ready, ELASTICSEARCH_URL=f"http://{NOBODY}", AMQP_DECLARE="never")
    assert len(told.about("can't be reached", "problem")) == 1
    assert len(told.about(f"queue '{ready.queue}'", "problem")) == 1


def test_bad_settings_are_exit_two(bench: Harness) -> None:
    """All of them at once, and neither server is asked."""
    done = command(bench, BATCH_MAX_ITEMS="many", ACTION="destroy")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2


# -- RabbitMQ ---------------------------------------------------------------------------------------------------------


def test_a_wrong_login_and_a_missing_virtual_host(ready: Harness) -> None:
    """Each is told as what it is."""
    (login,) = check(ready, AMQP_URL=with_login(ready.rabbitmq.amqp_url, f"guest:{SECRET}")).about("RabbitMQ")
    assert "doesn't accept the login of the user 'guest'" in login["what"]
    (vhost,) = check(ready, AMQP_URL=ready.rabbitmq.amqp_url.rstrip("/") + "/nowhere").about("RabbitMQ")
    assert "the virtual host 'nowhere' doesn't exist" in vhost["what"]


def test_no_tls_where_it_is_expected(ready: Harness) -> None:
    """A plain port that is spoken to by TLS."""
    told = check(ready, AMQP_URL=ready.rabbitmq.amqp_url.replace("amqp:", "amqps:"))
    (finding,) = told.about("RabbitMQ amqps")
    assert "TLS" in finding["fix"]


def test_missing_queues_are_created_or_a_problem_and_looking_creates_none(bench: Harness) -> None:
    """Under `missing` they will be there; under `never` somebody has to see to it."""
    told = check(bench)
    assert [finding["severity"] for finding in told.about("queue '")] == ["note", "note"]
    told = check(bench, AMQP_DECLARE="never", AMQP_EXCHANGE=bench.queue)
    assert [finding["severity"] for finding in told.about("queue '")] == ["problem", "problem"]
    assert len(told.about("exchange '", "warning")) == 1
    (delays,) = told.about("delay queues", "warning")
    assert f"{bench.queue}.delay.10000, {bench.queue}.delay.20000" in delays["what"]
    assert bench.amqp.queue_state(bench.queue) is None
    assert bench.amqp.queue_state(bench.dead) is None


def test_queues_with_other_arguments_are_told_and_left_alone(bench: Harness) -> None:
    """The argument is named, for the work queue and for the dead letters."""
    bench.declare({"x-queue-type": "classic"})
    bench.amqp.declare_queue(bench.dead, {"x-queue-type": "quorum"})
    told = check(bench)
    assert told.status == 0
    (work,) = told.about(f"queue '{bench.queue}'", "warning")
    assert "another x-queue-type" in work["what"]
    (dead,) = told.about(f"dead-letter queue '{bench.dead}'", "warning")
    assert "another x-delivery-limit" in dead["what"]
    told = check(bench, AMQP_QUEUE_TYPE="classic")
    assert told.about(f"queue '{bench.queue}'") == []
    for queue in (bench.queue, bench.dead):
        bench.amqp.delete_queue(queue)


def test_a_stream_is_a_problem(bench: Harness) -> None:
    """It isn't consumed as a queue is."""
    bench.declare({"x-queue-type": "stream"})
    (finding,) = check(bench).about(f"queue '{bench.queue}'", "problem")
    assert "stream" in finding["what"]
    bench.amqp.delete_queue(bench.queue)


def test_a_missing_dead_letter_route(ready: Harness) -> None:
    """An exchange that isn't there, a queue that comes back to itself, and rejects that the broker would drop."""
    told = check(ready, DEAD_LETTER_EXCHANGE="nowhere")
    assert len(told.about("dead-letter exchange 'nowhere'", "problem")) == 1
    told = check(ready, DEAD_LETTER_EXCHANGE="amq.direct", DEAD_LETTER_ROUTING_KEY="rejects")
    (finding,) = told.about("dead-letter exchange 'amq.direct'", "note")
    assert "'rejects'" in finding["what"]
    told = check(ready, DEAD_LETTER_ROUTING_KEY=ready.queue)
    assert len(told.about("for ever", "problem")) == 1
    assert len(check(ready, ON_REJECT="broker").about("every reject is dropped", "warning")) == 1


@pytest.mark.parametrize(("kind", "word"), [("topic", "another type"), ("x-unheard-of", "doesn't know the type")])
def test_an_exchange_of_another_type(ready: Harness, kind: str, word: str) -> None:
    """It is bound to as it is; a type that closes the connection doesn't end the check."""
    told = check(ready, AMQP_EXCHANGE="amq.direct", AMQP_EXCHANGE_TYPE=kind, ON_REJECT="broker")
    assert len(told.about(word, "warning")) == 1
    assert len(told.about("every reject is dropped")) == 1
    assert check(ready, AMQP_EXCHANGE="amq.direct").worse == []


# -- Elasticsearch ----------------------------------------------------------------------------------------------------


def test_a_missing_index_says_what_will_make_it(bench: Harness, template: Callable[..., None]) -> None:
    """Nothing, a template, or a template that forbids it; looking makes none."""
    assert len(check(bench).about("no index template matches", "warning")) == 1
    template()
    assert len(check(bench).about("the first document creates it", "note")) == 1
    template(allow_auto_create=False)
    assert len(check(bench).about("forbids that a document creates it", "warning")) == 1
    assert bench.stored() == 0


def test_a_data_stream_takes_only_create_and_ids_only_until_its_rollover(
    bench: Harness, template: Callable[..., None]
) -> None:
    """Before it is there, by its template; when it is there; and for names that come from messages."""
    template(data_stream={})
    assert len(check(bench).about("nothing but create", "problem")) == 1
    bench.es("POST", f"/{bench.index_name}/_create/1", {"@timestamp": "2026-01-01T00:00:00Z"})
    told = check(bench)
    assert len(told.about(f"data stream '{bench.index_name}'", "problem")) == 1
    told = check(bench, ACTION="create")
    assert told.status == 0
    assert len(told.about("after a rollover", "warning")) == 1
    told = check(bench, INDEX=bench.index_name + "-{type}")
    assert len(told.about("nothing but create", "warning")) == 1


def test_an_alias_without_a_write_index(ready: Harness) -> None:
    """It stands for two, and neither is said to be the one to write to."""
    name, alias = ready.index_name, f"{ready.index_name}-alias"
    ready.es("PUT", f"/{name}/_alias/{alias}")
    assert check(ready, INDEX=alias).worse == []
    ready.es("PUT", f"/{name}-2", {"aliases": {alias: {}}})
    assert len(check(ready, INDEX=alias).about("none is its write index", "problem")) == 1


def test_blocked_and_closed_indices_and_a_missing_pipeline(ready: Harness) -> None:
    """What every item would come back with."""
    ready.es("PUT", f"/{ready.index_name}/_settings", {"index.blocks.write": True})
    told = check(ready, PIPELINE="nowhere")
    assert len(told.about("index.blocks.write", "problem")) == 1
    assert len(told.about("pipeline 'nowhere'", "problem")) == 1
    ready.es("POST", f"/{ready.index_name}/_close")
    assert len(check(ready).about("it is closed", "problem")) == 1


ROLES = """writer:
  indices:
    - names: ["open*"]
      privileges: ["write", "auto_configure", "view_index_metadata"]
"""
FILES = {
    "roles.yml": ROLES,
    # bcrypt of the secret, since not every distribution can make users by its API
    "users": "pikachu:$2b$04$1k1kpkHxsulAoxTUQhuEfO9N7uYHaMhIKeheuCkVBbbN2I5yr37Ey\n",
    "users_roles": "writer:pikachu\n",
}


@pytest.mark.full  # a server of its own
def test_logins_and_privileges(
    bench: Harness, make_bench: Callable[..., Harness], elasticsearch_factory: Callable[..., Any]
) -> None:
    """A wrong password, an index that is forbidden, and one that isn't."""
    cluster = elasticsearch_factory(password=SECRET, files=FILES)
    url = f"http://{cluster.url.rpartition('@')[2].removeprefix('http://')}"
    secured = make_bench(bench.rabbitmq, cluster)

    def told(name: str, password: str, **settings: str) -> Told:
        login = {"ELASTICSEARCH_USERNAME": name, "ELASTICSEARCH_PASSWORD": password}
        return check(secured, ELASTICSEARCH_URL=url, **login, **settings)

    assert len(told("elastic", SECRET + "-not").about("401: it doesn't accept the login", "problem")) == 1
    assert told("elastic", SECRET).about("lacks") == []
    (forbidden,) = told("pikachu", SECRET, INDEX="closed").about("lacks", "problem")
    assert "'pikachu' lacks index" in forbidden["what"]
    assert told("pikachu", SECRET, INDEX="open-1").about("lacks") == []
    assert len(told("pikachu", SECRET, INDEX="{type}").about("lacks", "warning")) == 1
    assert told("pikachu", SECRET, INDEX="{type}", INDEX_ALLOW="open-*").about("lacks") == []


class _Stranger(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_that_is_not_elasticsearch(ready: Harness) -> None:
    """It answers, but not as one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stranger)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told = check(ready, ELASTICSEARCH_URL=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    assert len(told.about("is not Elasticsearch", "problem")) == 1
