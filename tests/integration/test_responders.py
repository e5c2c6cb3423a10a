"""What stands at Elasticsearch's address and is none: nothing is consumed, and every command says what is there."""

from __future__ import annotations

import http.client
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from devstack import processes
from sidecar.elasticsearch.client import Connection
from tests.fakes.recorder import using
from tests.integration.harness import message
from tests.integration.http_client import page
from tests.integration.process import run_sidecar, wait_until
from tests.integration.proxy import Reply, as_it_is

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tests.integration.harness import Harness
    from tests.integration.proxy import Proxy

SECONDS = 60.0
SECRET = "hunter2-is-secret"
JSON = "application/json"
PROXY_PAGE = (404, {"content-type": "text/html"}, b"<html><title>404 Not Found</title></html>")
ROOT_OF_7 = {"name": "n", "cluster_name": "c", "version": {"number": "7.17.29", "build_flavor": "default"}}


class Stranger:
    """A server that answers every request alike, but for those that it hands on.

    Args:
        status: of its answers.
        headers: of its answers.
        body: of its answers.
        passes: says of a path whether it is handed on to `target`.
        target: URL of an Elasticsearch.

    Attributes:
        asked: method and path of each request.
    """

    def __init__(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes,
        *,
        passes: Callable[[str], bool] = lambda _: False,
        target: str = "",
    ) -> None:
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def answer(self) -> None:
                sent = self.rfile.read(int(self.headers.get("content-length", 0)))
                stranger.asked.append((self.command, self.path))
                if passes(self.path.partition("?")[0]):
                    there = urlsplit(target)
                    connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=SECONDS)
                    connection.request(self.command, self.path, sent, dict(self.headers.items()))
                    got = connection.getresponse()
                    product = {"x-elastic-product": got.headers["x-elastic-product"], "content-type": JSON}
                    reply = got.status, product, got.read()
                    connection.close()
                else:
                    reply = status, headers, body
                self.send_response(reply[0])
                for name, value in reply[1].items():
                    self.send_header(name, value.replace("PATH", self.path))
                self.send_header("content-length", str(len(reply[2])))
                self.end_headers()
                self.wfile.write(reply[2])

            do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self.asked: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def stranger() -> Iterator[Callable[..., Stranger]]:
    """Return a function that makes a stranger."""
    made: list[Stranger] = []

    def make(*arguments: Any, **options: Any) -> Stranger:
        made.append(Stranger(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def command(bench: Harness, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the sidecar to its end."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("SIDECAR_")}
    return run_sidecar(*arguments, environment=inherited | bench.settings(**settings), seconds=SECONDS)


def assert_told(bench: Harness, url: str, word: str, **settings: str) -> None:
    """See that `run` waits and says why, that its probes fail, and that `check` and `mappings` fail with the same."""
    bench.declare()
    bench.publish([message(b'{"n":1}', "a")])
    port = processes.free_port()
    given = {"ELASTICSEARCH_URL": url, **settings}
    sidecar = bench.sidecar(HTTP_ADDRESS=f"127.0.0.1:{port}", **given)
    event = sidecar.wait_for("elasticsearch.unreachable")
    assert word in event["reason"], event
    wait_until(lambda: word in page(port, "/readyz")[1], SECONDS, "a /readyz that says why", sidecar.told)
    assert page(port, "/readyz")[0] == 503
    assert page(port, "/startupz")[0] == 503
    assert not sidecar.events("amqp.consuming")
    assert sidecar.terminate()["received"] == 0
    assert bench.count() == 1
    told = command(bench, "check", "--format", "json", **given)
    assert told.returncode == 1, told.stdout
    findings = [f"{finding['what']}: {finding['fix']}" for finding in json.loads(told.stdout)["findings"]]
    assert any(word in finding for finding in findings), findings
    done = command(bench, "mappings", "apply", "--folder", "mappings", **given)
    assert (done.returncode, done.stdout) == (1, ""), done
    assert word in done.stderr
    everything = f"{sidecar.log.read_text()}{told.stdout}{told.stderr}{done.stderr}"
    assert SECRET not in everything


@pytest.mark.parametrize("status", [301, 303, 307, 308])
def test_no_kind_of_redirect_is_followed(stranger: Callable[..., Stranger], bench: Harness, status: int) -> None:
    """Neither with the method kept nor changed."""
    good = bench.elasticsearch.url
    redirecting = stranger(status, {"location": f"{good}PATH"}, b"")
    told = using(Connection(urls=(redirecting.url,)), lambda sink: sink.check())
    assert told is not None
    assert f"answered {status} and points at {good}/" in told


def test_a_redirect_is_told_by_every_command(bench: Harness, stranger: Callable[..., Stranger]) -> None:
    """Not followed to a good Elasticsearch either: on the way a POST becomes a GET, and the login is dropped."""
    status = 302
    good = bench.elasticsearch.url
    there = good.replace("http://", f"http://u:{SECRET}@") + f"PATH?token={SECRET}"
    redirecting = stranger(status, {"location": there}, b"")
    assert_told(bench, redirecting.url, f"answered {status} and points at {good}/: set SIDECAR_ELASTICSEARCH_URL to it")
    assert {method for method, path in redirecting.asked if "_bulk" in path} == {"POST"}


def test_a_redirect_that_begins_while_messages_flow_is_a_hold(
    bench: Harness, make_proxy: Callable[[str], Proxy]
) -> None:
    """Nothing is sent there, nothing rejected; it goes on when Elasticsearch answers itself."""
    proxy = make_proxy(bench.elasticsearch.url)
    proxy.change = lambda call: Reply(302, b"", {"location": f"{bench.elasticsearch.url}{call.path}"})
    bench.declare()
    bench.publish([message(b'{"n":1}', "a")])
    sidecar = bench.sidecar(ELASTICSEARCH_URL=proxy.url)
    reason = sidecar.wait_for("elasticsearch.held")["reason"]
    assert reason.startswith(f"Elasticsearch answered 302 and points at {bench.elasticsearch.url}/: set SIDECAR_ELAST")
    assert bench.stored() == 0
    proxy.change = as_it_is
    wait_until(lambda: bench.stored() == 1, SECONDS, "the document", sidecar.told)
    account = sidecar.terminate()
    assert (account["ack"], account["dead_letter"]) == (1, 0)


def test_a_version_before_8_is_named(bench: Harness, stranger: Callable[..., Stranger]) -> None:
    """With those that are supported, before the first message is taken."""
    headers = {"content-type": JSON, "x-elastic-product": "Elasticsearch"}
    old = stranger(200, headers, json.dumps(ROOT_OF_7).encode())
    assert_told(bench, old.url, "Elasticsearch 7.17.29 was found; the sidecar supports 8 and 9")


def test_templates_wait_for_an_elasticsearch_too(bench: Harness, stranger: Callable[..., Stranger]) -> None:
    """A proxy's 404 isn't a template that is missing, and the reason is in /readyz while they wait."""
    status, headers, body = PROXY_PAGE
    other = stranger(status, headers, body)
    assert_told(bench, other.url, "is not Elasticsearch", MAPPINGS_DIR="mappings", MAPPINGS_APPLY="true")
    assert "PUT" not in {method for method, _ in other.asked}


def test_a_proxy_that_lets_only_bulk_requests_pass_is_good_enough(
    bench: Harness, stranger: Callable[..., Stranger]
) -> None:
    """Elasticsearch's own answer to an empty one shows that it is there."""
    status, headers, body = PROXY_PAGE
    path = f"/{bench.index_name}/_bulk"
    gate = stranger(status, headers, body, passes=path.__eq__, target=bench.elasticsearch.url)
    bench.declare()
    bench.publish([message(b'{"n":1}', "a")])
    sidecar = bench.sidecar(ELASTICSEARCH_URL=gate.url)
    bench.wait_empty(SECONDS, sidecar)
    assert sidecar.terminate()["ack"] == 1
    assert bench.stored() == 1
