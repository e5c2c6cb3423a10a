"""`sidecar.observability.http` and what it tells, over a real socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest

from sidecar.cli.run import about
from sidecar.config.settings import load
from sidecar.core.stats.counters import Counters
from sidecar.core.stats.failures import FailureGroup, FailureKind
from sidecar.core.stats.snapshot import NotReady
from sidecar.errors import ConfigError
from sidecar.observability.http import Server, open_server, page, policy
from sidecar.observability.metrics import Metrics
from sidecar.observability.status import HISTORY_SECONDS, StaticInfo, Status
from tests.builders import state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PATHS = ("/", "/status", "/metrics", "/livez", "/startupz", "/readyz")


class Scene:
    """A server that tells a state which a test may change."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.state = state(Counters())
        about = StaticInfo(("work",), {"index": "documents"})
        self.status = Status(lambda: self.state, about, clock=lambda: self.now, wall_clock=lambda: 1_700_000_000.0)
        self.url = ""

    def becomes(self, **values: object) -> None:
        self.state = self.state._replace(**values)  # type: ignore[arg-type]

    async def ask(self, path: str, method: str = "GET") -> tuple[int, Any, dict[str, str]]:
        async with aiohttp.ClientSession() as client, client.request(method, self.url + path) as answer:
            body = await answer.read()
            plain = answer.content_type != "application/json"
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, body if plain or not body else orjson.loads(body), headers


def play(scenario: Callable[[Scene], Awaitable[None]]) -> None:
    """Play a scenario against a server."""

    async def main() -> None:
        context = Scene()
        server, address = await open_server(("127.0.0.1", 0), context.status, Metrics(lambda: context.state))
        context.url = f"http://{address}"
        try:
            await scenario(context)
        finally:
            await server.close()

    asyncio.run(asyncio.wait_for(main(), 20.0))


@pytest.mark.parametrize("path", PATHS)
def test_everything_is_there_to_be_read_and_nothing_to_be_changed(path: str) -> None:
    """GET and HEAD only; nothing is kept by anybody on the way."""

    async def scenario(context: Scene) -> None:
        status, _, headers = await context.ask(path)
        assert status == 200
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert (await context.ask(path, "HEAD"))[0] == 200
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert (await context.ask(path, method))[0] == 405

    play(scenario)


def test_other_paths_are_not_found() -> None:
    """And tell nothing."""

    async def scenario(context: Scene) -> None:
        for path in ("/nothing", "/status/", "/../pyproject.toml", "/page.html"):
            assert (await context.ask(path))[0] == 404

    play(scenario)


@pytest.mark.parametrize(
    "not_ready",
    [
        NotReady("not-connected", "127.0.0.1:1: refused"),
        NotReady("waiting-for-elasticsearch", "no answer"),
        NotReady("held", "503"),
        NotReady("dead-letters-held", "NO_ROUTE"),
        NotReady("draining", "the sidecar was told to stop"),
    ],
)
def test_readiness_says_why_not(not_ready: NotReady) -> None:
    """A word for scripts, a sentence for people; alive all the same."""

    async def scenario(context: Scene) -> None:
        assert (await context.ask("/readyz"))[:2] == (200, {"ready": True})
        context.becomes(not_ready=not_ready)
        expected = {"ready": False, "reason": not_ready.reason, "detail": not_ready.detail}
        assert (await context.ask("/readyz"))[:2] == (503, expected)
        assert (await context.ask("/livez"))[:2] == (200, {"live": True})
        assert (await context.ask("/startupz"))[0] == 200
        told = (await context.ask("/status"))[1]
        assert {name: told[name] for name in expected} == expected

    play(scenario)


@pytest.mark.parametrize(("broker", "elasticsearch", "status"), [(1, 1, 200), (1, 0, 503), (0, 1, 503), (0, 0, 503)])
def test_started_means_that_both_sides_were_reached_once(broker: int, elasticsearch: int, status: int) -> None:
    """However they are now."""

    async def scenario(context: Scene) -> None:
        context.becomes(
            reached_broker=bool(broker), reached_elasticsearch=bool(elasticsearch), not_ready=NotReady("held", "away")
        )
        assert (await context.ask("/startupz"))[0] == status

    play(scenario)


def test_the_status_tells_the_breaker_and_what_failed() -> None:
    """Since when, why, and when it is tried again; failures by kind, with an id to look for."""

    async def scenario(context: Scene) -> None:
        group = FailureGroup(
            FailureKind("dead_letter", "rejected", "document_parsing_exception"), 7, 1.6e9, 'a"b</script>', "no number"
        )
        context.becomes(held="no answer", held_seconds=12.34, next_try_seconds=3.21, breaker="open", failures=[group])
        context.state.counters.complete("age", 30, 4_000)
        context.state.counters.complete("age", 50, 4_000)
        context.state.counters.documents["index", "success"] += 80
        told = (await context.ask("/status"))[1]
        assert told["breaker"] == {
            "state": "open",
            "reason": "no answer",
            "held_seconds": 12.3,
            "next_try_seconds": 3.2,
        }
        assert told["failures"] == [
            {
                "verdict": "dead_letter",
                "reason": "rejected",
                "error_type": "document_parsing_exception",
                "count": 7,
                "last_at": 1.6e9,
                "example_id": 'a"b</script>',
                "detail": "no number",
            }
        ]
        assert told["batches"] == {"age": {"batches": 2, "messages": 80}}
        assert told["documents"] == {"index": {"success": 80}}
        assert told["queues"] == ["work"]
        assert told["settings"] == {"index": "documents"}

    play(scenario)


def test_rates_are_those_between_two_samples() -> None:
    """However late the loop was with one; and no more than two minutes of them are kept."""
    context = Scene()
    account = context.state.counters
    for seconds, received, acked in ((1.0, 100, 0), (2.0, 500, 100), (1.0, 0, 500)):
        context.status.sample()
        context.now += seconds
        account.received["work"] += received
        account.settle("work", "ack", acked)
    context.status.sample()
    history = context.status.everything()["history"]
    assert history == {"received_per_second": [100.0, 250.0, 0.0], "stored_per_second": [0.0, 50.0, 500.0]}
    for _ in range(500):
        context.now += 1.0
        context.status.sample()
    assert len(context.status.everything()["history"]["stored_per_second"]) == HISTORY_SECONDS


@pytest.mark.parametrize("host", ["127.0.0.1", None, "no.such.host.invalid"])
def test_an_address_that_cannot_be_had_is_a_fault_of_the_settings(host: str | None) -> None:
    """Told with its name; not a traceback."""

    async def main() -> None:
        context = Scene()
        first, address = await open_server(("127.0.0.1", 0), context.status, Metrics(lambda: context.state))
        try:
            taken = int(address.rpartition(":")[2])
            with pytest.raises(ConfigError, match=rf"SIDECAR_HTTP_ADDRESS: \S*:{taken} can't be listened on: ."):
                await open_server((host, taken), context.status, Metrics(lambda: context.state))
        finally:
            await first.close()

    asyncio.run(asyncio.wait_for(main(), 20.0))


def test_closing_does_not_wait_for_clients_that_stay() -> None:
    """A browser keeps its connection; the end may not wait for it."""

    async def main() -> None:
        context = Scene()
        server, address = await open_server(("127.0.0.1", 0), context.status, Metrics(lambda: context.state))
        async with aiohttp.ClientSession() as client:
            async with client.get(f"http://{address}/livez") as answer:
                assert answer.status == 200
            async with asyncio.timeout(5.0):
                await server.close()
            with pytest.raises(aiohttp.ClientError):
                await client.get(f"http://{address}/livez")

    asyncio.run(main())


# The page ------------------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def outline() -> Outline:
    """Return that of the status page."""
    found = Outline()
    found.feed(page().decode())
    return found


def test_the_page_needs_nothing_from_outside_and_may_fetch_nothing() -> None:
    """It works without the internet, and its policy lets only what stands in it run."""
    for tag, attributes in outline().tags:
        for name in ("src", "href", "action"):
            target = attributes.get(name)
            assert target is None or target in {"data:,", "status", "metrics", "readyz"}, (tag, attributes)
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
    text = page().decode()
    assert not re.search(r"https?:|@import|url\(|innerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    allowed = policy(page())
    assert allowed.startswith("default-src 'none'; ")
    assert "unsafe" not in allowed
    for kind in ("script", "style"):
        (inline,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in allowed


def test_the_page_is_served_with_its_policy() -> None:
    """As HTML in UTF-8."""

    async def scenario(context: Scene) -> None:
        _, body, headers = await context.ask("/")
        assert body == page()
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert headers["content-security-policy"] == policy(page())

    play(scenario)


def test_the_page_is_made_for_everybody() -> None:
    """A language, a title, headings by which its parts are known, news told politely, tables with heads."""
    tags = outline().tags
    names = [tag for tag, _ in tags]
    assert ("html", {"lang": "en"}) in tags
    assert {"title", "main", "header", "footer", "h1"} <= set(names)
    idents = {attributes["id"] for _, attributes in tags if "id" in attributes}
    for tag, attributes in tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in idents
        if tag == "th":
            assert attributes.get("scope") in {"row", "col"}
    assert any(attributes.get("aria-live") == "polite" for _, attributes in tags)
    assert "prefers-color-scheme: dark" in page().decode()
    script = page().decode().partition("<script>")[2]
    for document_id in re.findall(r'byId\("([^"]+)"\)|(?:rows|tile|latency)\("([^"]+)"', script):
        assert next(filter(None, document_id)) in idents


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour (WCAG 2)."""
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21 (WCAG 2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_its_text_can_be_read_in_light_and_in_dark() -> None:
    """At least 4.5 to 1 for text, as WCAG 2 has it for level AA."""
    schemes = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", block)) for block in page().decode().split(":root {")[1:3]]
    assert len(schemes) == 2
    for colours in schemes:
        for ground in ("ground", "panel"):
            for text in ("text", "soft", "stored", "received"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["good"], colours["good-ground"]) >= 4.5
        assert contrast(colours["bad"], colours["bad-ground"]) >= 4.5


def test_a_server_that_never_listened_can_be_closed() -> None:
    """The end comes whatever the beginning was."""

    async def main() -> None:
        context = Scene()
        await Server(context.status, Metrics(lambda: context.state)).close()

    asyncio.run(main())


def test_what_is_told_of_the_settings_is_about_the_far_side_there_is() -> None:
    """The page names index or exchange; neither tells of the other, and neither of URLs."""
    required = {"SIDECAR_AMQP_QUEUE": "work"}
    writes = about(load(required | {"SIDECAR_INDEX": "logs"})).settings
    assert writes["index"] == "logs"
    assert not [name for name in writes if "sink" in name]
    stage = {
        "SIDECAR_SINK": "amqp",
        "SIDECAR_SINK_EXCHANGE": "staging",
        "SIDECAR_SINK_AMQP_URL": "amqp://u:hunter2@far/",
    }
    passes_on = about(load(required | stage)).settings
    assert (passes_on["sink_exchange"], passes_on["sink_routing_key"]) == ("staging", "{routing_key}")
    assert not {"index", "action", "id"} & passes_on.keys()
    assert "hunter2" not in str(passes_on)
