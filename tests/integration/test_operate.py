"""What an operator sees: metrics that add up, probes with reasons, a page, a log that a person can read."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from devstack.provision import find_browser
from tests.integration.harness import message
from tests.integration.http_client import ANY_PORT, Http, Scrape
from tests.integration.process import wait_until
from tests.integration.test_secrets import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.harness import Harness
    from tests.integration.process import SidecarProcess

DEADLINE_SECONDS = 60.0


class Watch:
    """Scrapes without a pause, and keeps what doesn't add up."""

    def __init__(self, http: Http) -> None:
        self.scrapes = self.busy = 0
        self.discrepancies: list[str] = []
        self.most: dict[str, float] = {}
        self._http = http
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        before: Scrape | None = None
        while not self._stop.is_set():
            try:
                scrape = self._http.metrics()
            except OSError:  # it has ended
                return
            self.scrapes += 1
            self.busy += scrape.total("messages_in_flight") > 0
            if scrape.discrepancy():
                self.discrepancies.append(scrape.text)
            for name in ("held", "messages_in_flight", "amqp_reconnects_total"):
                self.most[name] = max(self.most.get(name, 0.0), scrape.total(name))
            if before is not None:
                for name in ("messages_received_total", "messages_settled_total", "documents_total"):
                    if scrape.total(name) < before.total(name):
                        self.discrepancies.append(f"{name} went back\n{scrape.text}")
            before = scrape


def test_the_account_adds_up_at_every_scrape_under_load_and_faults(breakable: Harness) -> None:
    """Connections cut, Elasticsearch frozen, bad documents, little memory, SIGTERM in the middle: never a gap."""
    breakable.create_index({"n": {"type": "long"}})
    breakable.declare()

    def publish(name: str) -> None:
        bodies = (b'{"n":%d,"x":"%s"}' % (at, b"x" * 300) if at % 50 else b'{"n":"no"}' for at in range(10_000))
        breakable.publish([message(body, f"{name}-{at}") for at, body in enumerate(bodies)])

    publish("a")
    sidecar = breakable.sidecar(
        HTTP_ADDRESS=ANY_PORT, BULK_TIMEOUT="1s", BATCH_MAX_ITEMS="200", MEMORY_LIMIT="1MiB", HOLD_MAX="2s"
    )
    http = Http(sidecar)

    def wait_for_documents() -> None:
        stored = http.metrics().total("documents_total")
        wait_until(
            lambda: http.metrics().total("documents_total") > stored + 1_000, DEADLINE_SECONDS, "load", sidecar.told
        )

    def cut_connections_in_a_hold() -> None:
        lost = http.metrics().total("amqp_reconnects_total")
        breakable.elasticsearch.freeze()
        try:
            wait_until(lambda: http.metrics().total("held") > 0, DEADLINE_SECONDS, "held again", sidecar.told)
            breakable.rabbitmq.rabbitmqctl("close_all_connections", "test")
            breakable.reconnect()
            wait_until(
                lambda: http.metrics().total("amqp_reconnects_total") > lost,
                DEADLINE_SECONDS,
                "a reconnect",
                sidecar.told,
            )
        finally:
            breakable.elasticsearch.thaw()

    with Watch(http) as watch:
        wait_for_documents()
        breakable.elasticsearch.freeze()
        try:
            sidecar.wait_for("amqp.given_back", DEADLINE_SECONDS)
        finally:
            breakable.elasticsearch.thaw()
        publish("b")
        wait_for_documents()
        for _ in range(5):
            # rabbitmqctl takes its time, and a hold that lasts too long has given back what was to be cut.
            cut_connections_in_a_hold()
            if http.metrics().total("messages_settled_total", verdict="stale"):
                break
            publish("more")
            wait_for_documents()
        publish("c")
        wait_for_documents()
        account = sidecar.terminate()
    print(f"{watch.scrapes} scrapes, {watch.busy} of them with messages in flight; {watch.most}; {account}")
    assert not watch.discrepancies, watch.discrepancies[0]
    assert watch.busy > 20
    assert watch.most["held"] == 1
    assert watch.most["amqp_reconnects_total"] >= 1
    assert account["stale"] > 0
    assert account["requeue"] > 0
    assert account["dead_letter"] > 0


def test_without_a_broker_it_lives_and_has_not_started(bench: Harness) -> None:
    """A probe of readiness tells what a person has to mend, without the password."""
    sidecar = bench.sidecar(HTTP_ADDRESS=ANY_PORT, AMQP_URL=f"amqp://guest:{PASSWORD}@127.0.0.1:1/")
    http = Http(sidecar)
    sidecar.wait_for("amqp.unreachable")
    assert http.get("/livez").status == 200
    for path in ("/startupz", "/readyz"):
        answer = http.get(path)
        assert answer.status == 503
        assert answer.json["reason"] == "not-connected"
        assert "127.0.0.1:1" in answer.json["detail"]
        assert PASSWORD not in answer.json["detail"]
    assert http.metrics().total("amqp_connected") == 0
    sidecar.terminate()


def test_probes_follow_what_happens(breakable: Harness) -> None:
    """Ready only when both sides work; waiting, held and draining are told; alive throughout."""
    breakable.create_index()
    breakable.declare()
    breakable.elasticsearch.freeze()
    sidecar = breakable.sidecar(HTTP_ADDRESS=ANY_PORT, BULK_TIMEOUT="1s")
    http = Http(sidecar)

    def why() -> str:
        assert http.get("/livez").status == 200
        answer = http.get("/readyz")
        assert (answer.status == 200) == answer.json["ready"]
        return str(answer.json.get("reason", "ready"))

    def wait_for(reason: str) -> Any:
        wait_until(lambda: why() == reason, DEADLINE_SECONDS, reason, sidecar.told)
        return http.get("/readyz").json

    try:
        sidecar.wait_for("elasticsearch.unreachable")
        assert "no answer" in wait_for("waiting-for-elasticsearch")["detail"]
        assert http.get("/startupz").status == 503
        breakable.elasticsearch.thaw()
        wait_for("ready")
        assert http.get("/startupz").status == 200
        breakable.elasticsearch.freeze()
        breakable.publish([message(b"{}", str(at)) for at in range(10)])
        assert "no answer" in wait_for("held")["detail"]
        told = http.get("/status").json
        assert told["breaker"]["state"] in {"open", "half-open"}
        assert "no answer" in told["breaker"]["reason"]
        assert told["breaker"]["next_try_seconds"] < 30
        assert http.get("/startupz").status == 200, "both were reached once"
        breakable.elasticsearch.thaw()
        wait_for("ready")
        breakable.elasticsearch.freeze()
        breakable.publish([message(b"{}", f"more-{at}") for at in range(10)])
        wait_until(
            lambda: http.metrics().total("bulk_in_flight") > 0, DEADLINE_SECONDS, "a request in flight", sidecar.told
        )
        ending = threading.Thread(target=sidecar.terminate)
        ending.start()
        wait_for("draining")
        ending.join()
    finally:
        breakable.elasticsearch.thaw()
    with pytest.raises(OSError, match="refused"):
        http.get("/livez")


def test_a_dead_letter_route_that_takes_nothing_is_told(bench: Harness) -> None:
    """By the probe, the metric and the status, in RabbitMQ's words."""
    bench.declare()
    bench.publish([message(b"not json")])
    sidecar = bench.sidecar(HTTP_ADDRESS=ANY_PORT, DEAD_LETTER_EXCHANGE="amq.topic")
    http = Http(sidecar)
    wait_until(
        lambda: http.get("/readyz").json.get("reason") == "dead-letters-held", DEADLINE_SECONDS, "a hold", sidecar.told
    )
    scrape = http.metrics()
    assert (scrape.total("held"), scrape.total("dead_letters_held"), scrape.total("ready")) == (1, 1, 0)
    assert "NO_ROUTE" in http.get("/status").json["dead_letters_held"]


def test_a_port_in_use_is_a_fault_of_the_settings(bench: Harness) -> None:
    """A sentence and exit status 2, before anything is consumed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sidecar = bench.sidecar(HTTP_ADDRESS=f"127.0.0.1:{port}")
        assert sidecar.process.wait(30) == 2
    (line,) = sidecar.log.read_text().splitlines()
    assert line.startswith(f"sidecar: SIDECAR_HTTP_ADDRESS: 127.0.0.1:{port} can't be listened on: ")
    assert "in use" in line


def test_without_an_address_nothing_listens(bench: Harness) -> None:
    """An empty value means off."""
    sidecar = bench.sidecar(HTTP_ADDRESS="")
    sidecar.wait_for("amqp.consuming")
    listening = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{sidecar.process.pid}/net/{name}").read_text().splitlines()
    ]
    descriptors = Path(f"/proc/{sidecar.process.pid}/fd").iterdir()
    sockets = {str(entry.readlink()) for entry in descriptors}
    assert not [row for row in listening if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    assert not sidecar.events("http.listening")


# The log -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_a_storm_of_rejects_is_a_log_that_a_person_can_read(bench: Harness, count: int) -> None:
    """Every reject is in a line, and the lines are few: at first one a batch and type, then one for ten seconds."""
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    bad = (b'{"n":"no %d"}' if at % 2 else b"not json %d" for at in range(count))
    bench.publish([message(body % at, str(at)) for at, body in enumerate(bad)])
    began = time.monotonic()
    sidecar = bench.sidecar(HTTP_ADDRESS=ANY_PORT, ON_REJECT="discard", REJECT_GUARD="0")
    Http(sidecar).wait_for_all(count, 120.0, sidecar)
    seconds = time.monotonic() - began
    status = Http(sidecar).get("/status").json
    assert sidecar.terminate()["discard"] == count
    lines = sidecar.events("items.rejected")
    print(f"{count} rejects in {seconds:.1f} s: {len(lines)} lines, {len(sidecar.events())} in all")
    assert sum(line["count"] for line in lines) == count
    assert len(lines) <= 2 * (3 + 1 + seconds / 10)
    assert {line["error_type"] for line in lines} == {"document_parsing_exception", ""}
    assert all(line["example_id"] for line in lines)
    assert sum(failure["count"] for failure in status["failures"]) == count
    assert len(status["failures"]) == 2


# The page ------------------------------------------------------------------------------------------------------------

CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=2500",
)
LOOKS = {
    "light": ("--window-size=1200,1000", "--blink-settings=preferredColorScheme=1"),
    "dark": ("--window-size=1200,1000", "--blink-settings=preferredColorScheme=0"),
    "phone": ("--window-size=500,1500", "--blink-settings=preferredColorScheme=1"),
}


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., str]:
    """Return a function that opens a URL in headless Chromium, and returns what it wrote."""
    program = find_browser()
    if program is None:
        pytest.skip("Chromium isn't installed: make provision gets it where it may (Debian: apt-get install chromium)")

    def call(url: str, *flags: str) -> str:
        profile = tmp_path / f"profile-{len(list(tmp_path.glob('profile-*')))}"
        done = subprocess.run(
            [str(program), *CHROMIUM_FLAGS, f"--user-data-dir={profile}", *flags, url],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not complaints, complaints
        return done.stdout

    return call


def shown(dom: str, document_id: str) -> str:
    """Return the text of an element, by its id."""
    match = re.search(rf'<(\w+)[^>]* id="{document_id}"[^>]*>(.*?)</\1>', dom, re.DOTALL) or re.search(
        rf'<(\w+) id="{document_id}"[^>]*>(.*?)</\1>', dom, re.DOTALL
    )
    assert match is not None, document_id
    return " ".join(re.sub(r"<[^>]+>", " ", match[2]).split())


def red(bench: Harness, **settings: str) -> tuple[SidecarProcess, Http]:
    """Return a sidecar that has stored much and refused some, of several kinds, one of them with an evil id."""
    bench.create_index({"n": {"type": "long"}})
    bench.declare()
    sidecar = bench.sidecar(HTTP_ADDRESS=ANY_PORT, **settings)
    bodies = (b'{"n":%d}' % at if at % 100 else b'{"n":"no"}' for at in range(5_000))
    at = int(time.time())
    bench.publish([message(body, f"order-{number}", timestamp=at) for number, body in enumerate(bodies)])
    bench.publish([message(b"not json", "<img src=x onerror=alert(1)>"), message(b"[]", "order-x")])
    http = Http(sidecar)
    http.wait_for_all(5_002, DEADLINE_SECONDS, sidecar)
    return sidecar, http


def test_the_page_shows_what_is_going_on(bench: Harness, browse: Callable[..., str]) -> None:
    """In a browser, with real traffic: what the account says, in words, and ids as text whatever they hold."""
    _, http = red(bench)
    status = http.get("/status").json
    dom = browse(f"{http.url}/", "--dump-dom")
    assert shown(dom, "verdict") == "✓ Ready : messages are consumed and stored"
    assert shown(dom, "about").startswith(f"{bench.queue} → {bench.index_name}")
    assert shown(dom, "account").startswith("ack 4,950 delay 0 requeue 0 dead letter 52")
    assert shown(dom, "received") == "5,002"
    assert f"count {status['batches']['count']['batches']} 1,000" in shown(dom, "batches")
    assert "breaker closed: sending" in shown(dom, "breaker")
    assert not shown(dom, "why")
    assert "index: success 4,950" in shown(dom, "work")
    failures = shown(dom, "failures")
    assert re.search(r"50 . document_parsing_exception \(rejected\), dead-lettered, last", failures)
    assert re.search(r"\b2 . malformed", failures)
    assert re.search(r"^[\d.,]+ (ms|s)", shown(dom, "end-to-end"))
    assert "<img" not in dom
    points = re.findall(r'id="line-stored" points="([^"]*)"', dom)
    assert len(points[0].split()) >= 2
    assert len({point.split(",")[1] for point in points[0].split()}) > 1, "a flat line"


def test_the_page_says_why_nothing_flows_and_when_nobody_answers(
    breakable: Harness, browse: Callable[..., str]
) -> None:
    """The reason is what is read first."""
    sidecar, http = red(breakable, BULK_TIMEOUT="2s")
    breakable.elasticsearch.freeze()
    breakable.publish([message(b"{}", str(at)) for at in range(10)])
    wait_until(lambda: http.get("/readyz").json.get("reason") == "held", DEADLINE_SECONDS, "a hold", sidecar.told)
    dom = browse(f"{http.url}/", "--dump-dom")
    assert shown(dom, "verdict").startswith("✗ Held : no answer from Elasticsearch")
    breaker = shown(dom, "breaker")
    assert "held for" in breaker
    assert "next try in" in breaker or "half open: probing" in breaker
    assert shown(dom, "why").startswith("no answer from Elasticsearch")


@pytest.mark.skipif("SCREENSHOTS" not in os.environ, reason="SCREENSHOTS=docs makes the pictures of the status page")
def test_pictures_of_the_page(breakable: Harness, browse: Callable[..., str]) -> None:
    """``SCREENSHOTS=docs python -m pytest tests/integration/test_operate.py -k pictures``."""
    folder = Path(os.environ["SCREENSHOTS"]).resolve()
    breakable.queue, breakable.dead, breakable.index_name = "orders", "orders.dead", "events"
    breakable.create_index({"amount": {"type": "double"}})
    breakable.declare()
    sidecar = breakable.sidecar(HTTP_ADDRESS=ANY_PORT)
    http = Http(sidecar)
    producer = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "produce", "--count", "100000", "--rate", "1500", "--bad-ratio", "0.003"],
        env=sidecar.environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        enough = 30_000
        wait_until(lambda: http.metrics().total("documents_total") > enough, 120.0, "traffic", sidecar.told)
        for name, flags in LOOKS.items():
            if name == "dark":
                breakable.elasticsearch.stop()
                sidecar.wait_for("elasticsearch.held", DEADLINE_SECONDS)
            browse(f"{http.url}/", *flags, f"--screenshot={folder}/status-{name}.png")
    finally:
        producer.kill()
        producer.wait()
