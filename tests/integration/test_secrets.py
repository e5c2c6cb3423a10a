"""Neither text of documents nor secrets are told: not in the log, not on the page, whatever fails and however."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import quote

import pytest

from tests.integration.harness import message
from tests.integration.http_client import ANY_PORT, Http
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess

DEADLINE_SECONDS = 60.0

MARK = "Zebra7Quagga"
"""In every document, where Elasticsearch or we quote what is refused."""
PASSWORD = "hunter2-Xyzzy"


@pytest.fixture
def user(bench: Harness) -> Iterator[str]:
    """Return a URL of RabbitMQ with a password that is like no other text."""
    bench.rabbitmq.rabbitmqctl("add_user", bench.queue, PASSWORD)
    bench.rabbitmq.rabbitmqctl("set_permissions", bench.queue, ".*", ".*", ".*")
    yield re.sub(r"://[^@]*@", f"://{bench.queue}:{PASSWORD}@", bench.rabbitmq.amqp_url)
    bench.rabbitmq.rabbitmqctl("delete_user", bench.queue)


def quoted_bodies() -> list[bytes]:
    """Return documents that are refused in all ways that quote them, and some that aren't."""
    values: dict[str, object] = {
        "number": MARK,
        "date": f"{MARK} o'clock",
        "flag": MARK,
        "ip": MARK,
        "place": f"{MARK},{MARK}",
        "object": MARK,
        "strict": {"stranger": MARK},  # the names of fields are told: who is to mend the mapping needs them
        "vector": [MARK],
        "span": {"gte": MARK},
        "word": MARK * 4000,
    }
    good = [{"text": MARK, "n": at} for at in range(20)]
    bodies = [json.dumps(body).encode() for body in [*({name: value} for name, value in values.items()), *good]]
    broken = [b'{"a":"%s"', b"%s", b'["%s"]', b'{"a":"%s","a":"%s"}', b'{"a":%s}', b'{"a":\n%s}', b'{"%s":{"b":\xff}}']
    return bodies + [body.replace(b"%s", MARK.encode()) for body in broken]


def test_neither_documents_nor_secrets_are_told_anywhere(bench: Harness, user: str) -> None:
    """Log at debug, status, metrics, page: no text of a document, no password, whatever is refused and however."""
    bench.create_index(
        {
            "number": {"type": "long"},
            "date": {"type": "date"},
            "flag": {"type": "boolean"},
            "ip": {"type": "ip"},
            "place": {"type": "geo_point"},
            "object": {"type": "object"},
            "strict": {"type": "object", "dynamic": "strict"},
            "vector": {"type": "dense_vector", "dims": 3},
            "span": {"type": "integer_range"},
            "word": {"type": "keyword", "ignore_above": 100_000},
        }
    )
    bench.declare()
    # A user of Elasticsearch in the URL as well would be one login too many; there is a test for each way elsewhere.
    sidecar = bench.sidecar(
        AMQP_URL=f"amqp://nobody:{PASSWORD}@127.0.0.1:1/,{user}",
        ELASTICSEARCH_USERNAME="writer",
        ELASTICSEARCH_PASSWORD=PASSWORD,
        HTTP_ADDRESS=ANY_PORT,
        LOG_LEVEL="debug",
    )
    http = Http(sidecar)
    bodies = quoted_bodies()
    bench.publish([message(body, f"id-{at}") for at, body in enumerate(bodies)])
    http.wait_for_all(len(bodies), DEADLINE_SECONDS, sidecar)
    told = {
        path: http.get(path).body.decode() for path in ("/", "/status", "/metrics", "/readyz", "/livez", "/startupz")
    }
    status = json.loads(told["/status"])
    account = sidecar.terminate()
    told["log"] = sidecar.log.read_text()
    print(f"{account['dead_letter']} of {len(bodies)} refused: {status['failures']}")
    assert account["dead_letter"] >= 15
    assert {"rejected", "malformed"} <= {failure["reason"] for failure in status["failures"]}
    assert sidecar.events("batch.stored")
    for place, text in told.items():
        for secret in (MARK, MARK.lower(), PASSWORD, "Zebra7"):
            assert secret not in text, f"{place}: …{text[max(0, text.index(secret) - 200) :][:400]}…"


# Every kind of failure, with every kind of secret ---------------------------------------------------------------------


class Says(NamedTuple):
    """What an answer says: of the whole request, or of each item of it; a status of 0 is a connection that is cut."""

    status: int
    error_type: str = ""
    reason: str = ""
    of_items: bool = False
    raw: bytes | None = None

    def body(self, items: int) -> bytes:
        if self.raw is not None:
            return self.raw
        error = {"type": self.error_type, "reason": self.reason, "caused_by": {"type": "x", "reason": self.reason}}
        if not self.of_items:
            return json.dumps({"error": error, "status": self.status}).encode()
        results = [{"index": {"status": self.status, "error": error}}] * items
        return json.dumps({"errors": True, "items": results}).encode()


QUOTES = f"failed to parse field [n] of type [long]. Preview of field's value: '{MARK}'; For input string: \"{MARK}\""
GRUDGES = (
    Says(0),
    Says(401, "security_exception", "unable to authenticate user [writer] for REST request [/events/_bulk]"),
    Says(403, "security_exception", "action [indices:data/write/bulk] is unauthorized for user [writer]"),
    Says(400, "x_content_parse_exception", f"[1:7] Unrecognized token '{MARK}': was expecting a value [\"{MARK}\"]"),
    Says(400, "illegal_argument_exception", f"can't do anything with '{MARK}'"),
    Says(404, raw=b"<html>no such page</html>"),
    Says(405, raw=MARK.encode()),
    Says(413, raw=b""),
    Says(429, "es_rejected_execution_exception", "rejected execution of coordinating operation"),
    Says(500, "null_pointer_exception", f"oh dear: '{MARK}'"),
    Says(503, raw=b"<html>come back later</html>"),
    Says(200, raw=MARK.encode()),
    Says(200, raw=b'{"errors":false,"items":[]}'),
    Says(400, "document_parsing_exception", QUOTES, of_items=True),
    Says(403, "cluster_block_exception", "index [events] blocked by: [FORBIDDEN/8/index write (api)];", of_items=True),
    Says(404, "index_not_found_exception", "no such index [events]", of_items=True),
    Says(429, "circuit_breaking_exception", "[parent] Data too large", of_items=True),
    Says(500, "null_pointer_exception", f"oh dear: '{MARK}'", of_items=True),
)
ABOUT_LOGINS = 3


class Grudging:
    """An Elasticsearch that fails in each of these ways once, and then stores whatever comes."""

    def __init__(self, grudges: Sequence[Says]) -> None:
        self.left = list(grudges)
        self.lock = threading.Lock()
        self.logins: set[str | None] = set()
        grudging = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_GET(self) -> None:
                self.tell(Says(200, raw=b'{"cluster_name":"grudging","version":{"number":"9.5.0"}}'), 0)

            def do_POST(self) -> None:
                items = self.rfile.read(int(self.headers["content-length"])).count(b'{"index"')
                grudging.logins.add(self.headers.get("authorization"))
                with grudging.lock:
                    says = grudging.left.pop(0) if grudging.left else None
                stored = b'{"errors":false,"items":[' + b",".join([b'{"index":{"status":201}}'] * items) + b"]}"
                self.tell(says or Says(200, raw=stored), items)

            def tell(self, says: Says, items: int) -> None:
                if says.status == 0:
                    self.close_connection = True
                    return
                body = says.body(items)
                self.send_response(200 if says.of_items else says.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


KEY_ID, KEY = "VuaCfGcBCdbkQm", "ui2lp2axTNm-syakw9tvNw"
TOKEN = "AAEAAWVsYXN0aWMvc2lkZWNhci90b2tlbjE6Xyzzy"
LOGINS = {
    "password": {"ELASTICSEARCH_USERNAME": "writer", "ELASTICSEARCH_PASSWORD": PASSWORD},
    "login in the URL": {"ELASTICSEARCH_URL": f"http://writer:{PASSWORD}@ADDRESS"},
    "API key": {"ELASTICSEARCH_API_KEY": f"{KEY_ID}:{KEY}"},
    "encoded API key": {"ELASTICSEARCH_API_KEY": base64.b64encode(f"{KEY_ID}:{KEY}".encode()).decode()},
    "bearer token": {"ELASTICSEARCH_BEARER_TOKEN": TOKEN},
}


def spellings(*secrets: str) -> set[str]:
    """Return secrets as they may be written: plain, in a URL, and as the headers that log in hold them."""
    found = {form for secret in secrets for form in (secret, quote(secret, safe=""))}
    for login in (f"writer:{PASSWORD}", f"{KEY_ID}:{KEY}"):
        found.add(base64.b64encode(login.encode()).decode())
    return found | {MARK, MARK.lower()}


def everything_told(sidecar: SidecarProcess, http: Http) -> dict[str, str]:
    """Return all that a sidecar tells over HTTP, and its log."""
    paths = ("/", "/status", "/metrics", "/readyz", "/livez", "/startupz")
    return {path: http.get(path).body.decode() for path in paths} | {"log": sidecar.log.read_text()}


@pytest.mark.parametrize("login", LOGINS)
def test_no_secret_is_told_whatever_fails(bench: Harness, user: str, login: str) -> None:
    """Each way to log in, and each way in which Elasticsearch can fail, some of which quote the document."""
    bench.declare()
    # What the others add is the login, which only answers about logins could quote; and each hold takes a second.
    with Grudging(GRUDGES if login == "password" else GRUDGES[:ABOUT_LOGINS]) as elasticsearch:
        settings = {"ELASTICSEARCH_URL": f"http://{elasticsearch.address}"} | LOGINS[login]
        settings = {name: value.replace("ADDRESS", elasticsearch.address) for name, value in settings.items()}
        sidecar = bench.sidecar(
            # Nobody there, nobody we know, a password that is wrong, and at last the right one.
            AMQP_URL=f"amqp://nobody:{PASSWORD}@127.0.0.1:1/,{user.replace(PASSWORD, PASSWORD + '-no')},{user}",
            HTTP_ADDRESS=ANY_PORT,
            LOG_LEVEL="debug",
            RETRY_DELAY_MIN="10ms",
            RETRY_DELAY_MAX="20ms",
            DELAYED_RETRY_DELAY="100ms",
            BATCH_MAX_ITEMS="5",
            BATCH_MAX_AGE="50ms",
            **settings,
        )
        http = Http(sidecar)
        bench.publish([message(b'{"n":"%s","at":%d}' % (MARK.encode(), at), f"id-{at}") for at in range(40)])
        told = []

        def over() -> bool:
            told.append(everything_told(sidecar, http))
            return not elasticsearch.left

        wait_until(over, DEADLINE_SECONDS, "every kind of failure", lambda: f"{elasticsearch.left}; {sidecar.told()}")
        http.wait_for_all(40, DEADLINE_SECONDS, sidecar)
        told.append(everything_told(sidecar, http))
        sidecar.terminate()
        told.append({"log": sidecar.log.read_text()})
        assert len(elasticsearch.logins) == 1
        assert None not in elasticsearch.logins
    assert sidecar.events("elasticsearch.held")
    if login == "password":
        assert sidecar.events("items.rejected")
    for one in told:
        for place, text in one.items():
            for secret in spellings(PASSWORD, KEY, TOKEN):
                assert secret not in text, f"{place}: …{text[max(0, text.index(secret) - 200) :][:400]}…"
