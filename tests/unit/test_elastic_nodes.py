"""`elasticsearch.client` over real sockets: nodes that break at every byte, and what is known of a request then.

The rule behind all of it: a request that no node can have seen goes to the next node. A request that a node may have
seen goes nowhere else; the pipeline is told that its outcome is unknown.
"""

from __future__ import annotations

import asyncio
import gzip
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.core.results import bulk
from sidecar.elasticsearch import client as sink_module
from sidecar.elasticsearch.client import Connection, ElasticsearchClient
from sidecar.elasticsearch.node import BULK_PATH
from sidecar.errors import SinkError
from tests.builders import THOROUGHNESS
from tests.fakes.http_server import Act, HttpCluster, Received, reply, running, stored

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from sidecar.ports import Answer

SECRET = "hunter2-is-a-secret"
BODY = b'{"index":{"_id":"1"}}\n{"n":1}\n{"index":{"_id":"2"}}\n{"n":2}\n'
STORED = {"errors": False, "items": [{"index": {"status": 201}}, {"index": {"status": 201}}]}
REFUSED = {"errors": True, "items": [{"index": {"status": 400}}, {"index": {"status": 429}}]}
PATH = bulk.path("logs")
LIMIT_SECONDS = 60.0
SHORT_SECONDS = 0.05


@asynccontextmanager
async def client(
    cluster: HttpCluster, *urls: str, bulk_path: str = BULK_PATH, **options: Any
) -> AsyncIterator[ElasticsearchClient]:
    """A sink for the nodes, which is closed in the end and leaves nothing behind."""
    login = {"username": "me", "password": SECRET} if not options.keys() & {"api_key", "bearer_token"} else {}
    sink = ElasticsearchClient(Connection(urls=urls or cluster.urls, **login | options), bulk_path=bulk_path)
    try:
        yield sink
    finally:
        await sink.close()
        assert all(node.session is None for node in sink._pool.all()), "a session is still open"
        assert sink._returning is None or sink._returning.done()


def play(scenario: Callable[[HttpCluster], Coroutine[object, object, None]], count: int = 3, **options: Any) -> None:
    """Run a scenario with nodes."""

    async def main() -> None:
        async with asyncio.timeout(LIMIT_SECONDS), running(count, **options) as cluster:
            await scenario(cluster)

    asyncio.run(main())


async def outcome(sink: ElasticsearchClient, body: bytes = BODY) -> Answer | str:
    """Return the answer to a bulk request, or what is said if none came."""
    try:
        return await sink.bulk(PATH, body)
    except SinkError as error:
        text = str(error)
        assert SECRET not in text
        assert "\n" not in text
        assert len(text) < 300, text
        return text


def assert_unknown(found: Answer | str, cluster: HttpCluster) -> None:
    """The outcome is unknown, and one node alone has seen the request."""
    if not isinstance(found, str):
        assert not bulk.all_stored(found.body, 2), found
        assert bulk.results(found.body, 2) is None, found
    assert len(cluster.requests) == 1, [request.raw for request in cluster.requests]


def forget(sink: ElasticsearchClient, cluster: HttpCluster) -> None:
    """Begin anew: all nodes are thought to be well."""
    cluster.requests.clear()
    sink._pool.away.clear()


def bytes_to_try(size: int) -> list[int]:
    """Return after how many bytes of `size` to break: each with TEST_THOROUGHNESS, else each of both ends and some."""
    step = 1 if THOROUGHNESS > 1 else 7
    return [last for last in range(1, size + 1) if last <= 5 or last > size - 5 or last % step == 0]


# A connection that breaks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_reused", [False, True])
def test_a_request_that_breaks_at_any_byte_is_unknown_and_goes_to_no_other_node(is_reused: bool) -> None:
    """Whichever byte was the last that the node read, on a new connection or one that has served before."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            assert isinstance(await outcome(sink), tuple)
            size = len(cluster.requests[0].raw)
            for last in bytes_to_try(size):
                if is_reused:
                    forget(sink, cluster)
                    for _ in cluster.urls:
                        assert isinstance(await outcome(sink), tuple)
                forget(sink, cluster)
                cluster.script.append(Act(read_bytes=last, end="reset" if last % 2 else "close"))
                found = await outcome(sink)
                assert isinstance(found, str), f"byte {last}: {found}"
                assert_unknown(found, cluster)
                assert len(sink._pool.away) == 1, "the node is left out"

    play(scenario)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_an_answer_that_breaks_at_any_byte_is_unknown(framing: Any, compress: bool) -> None:
    """Nothing is taken for stored before the answer is whole, however its end is told."""
    answer = reply(STORED, framing=framing, compress=compress)

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            head = answer.index(b"\r\n\r\n")
            for last in [0, *(last for last in bytes_to_try(head)), *range(head + 1, len(answer))]:
                forget(sink, cluster)
                end: Any = "reset" if last % 2 and framing != "close" else "close"
                cluster.script.append(Act(answer=answer, send_bytes=last, end=end))
                found = await outcome(sink)
                if isinstance(found, str) or bulk.results(found.body, 2) is None:
                    assert_unknown(found, cluster)
                else:  # the last bytes only tell where the end is
                    assert found.body == reply(STORED).partition(b"\r\n\r\n")[2]
                    assert answer[last:] in (b"\n", b"\r\n", b"\n\r\n", b"\r\n\r\n") or (framing, compress) == (
                        "close",
                        True,
                    )
            forget(sink, cluster)
            cluster.script.append(Act(answer=answer, end="close"))
            found = await outcome(sink)
            assert not isinstance(found, str)
            assert bulk.all_stored(found.body, 2)

    play(scenario)


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_an_answer_in_single_bytes_is_the_same(framing: Any) -> None:
    """How the network cuts it is nobody's business."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            cluster.script.append(Act(answer=reply(STORED, framing=framing), piece_bytes=1, end="close"))
            found = await outcome(sink)
            assert not isinstance(found, str)
            assert bulk.all_stored(found.body, 2)

    play(scenario)


def test_a_node_that_accepts_and_hangs_up_has_perhaps_seen_the_request() -> None:
    """It cost one request; then the others do the work."""

    async def scenario(cluster: HttpCluster) -> None:
        cluster.hang_ups = {1}
        async with client(cluster) as sink:
            found = [await outcome(sink) for _ in range(9)]
            assert [type(one) for one in found].count(str) == 1
            assert cluster.served[1] == 0
            assert sum(cluster.served) == 8

    play(scenario)


@pytest.mark.parametrize("away", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_a_node_that_refuses_connections_costs_nothing(away: tuple[int, ...]) -> None:
    """It has seen nothing, so the next one gets the request, once, at the first try and ever after."""

    async def scenario(cluster: HttpCluster) -> None:
        for node in away:
            await cluster.down(node)
        async with client(cluster) as sink:
            for _ in range(3):
                assert isinstance(await outcome(sink), tuple)
            assert sum(cluster.served) == 3
            assert len(sink._pool.away) == len(away)
            cluster.requests.clear()
            for _ in range(12):
                assert isinstance(await outcome(sink), tuple)
            share = 12 // (3 - len(away))
            assert [cluster.served[node] for node in range(3) if node not in away] == [share] * (3 - len(away))

    play(scenario)


def test_with_all_nodes_away_each_is_tried_once_for_each_request() -> None:
    """A handshake that breaks is no connection yet: no node has seen the request, and none is asked twice."""

    async def scenario(cluster: HttpCluster) -> None:
        urls = [url.replace("http:", "https:") for url in cluster.urls]  # they hang up on what isn't HTTP
        cluster.script.extend([Act(read_bytes=1, end="reset")] * 6)
        async with client(cluster, *urls) as sink:
            for _ in range(2):
                cluster.requests.clear()
                assert isinstance(await outcome(sink), str)
                assert sorted(request.node for request in cluster.requests) == [0, 1, 2]

    play(scenario)


def test_a_handshake_that_breaks_at_any_byte_sends_the_request_to_the_next_node() -> None:
    """Nothing of the request leaves before the handshake is done."""

    async def scenario(cluster: HttpCluster) -> None:
        secure = cluster.urls[0].replace("http:", "https:")
        async with client(cluster, secure, cluster.urls[1]) as sink:
            for last in bytes_to_try(300):
                for node in sink._pool.all():  # no matter whose turn it is
                    forget(sink, cluster)
                    cluster.script.clear()
                    sink._pool.node_selector.select = lambda nodes, first=node: first if first in nodes else nodes[0]
                    if node.config.scheme == "https":
                        cluster.script.append(Act(read_bytes=last, end="reset" if last % 2 else "close"))
                    assert isinstance(await outcome(sink), tuple), last
                    assert cluster.served == [0, 1, 0]

    play(scenario)


def test_a_connection_that_was_closed_meanwhile_is_not_used_again() -> None:
    """A proxy closes idle connections; the next request gets a new one."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            for number in range(1, 6):
                assert isinstance(await outcome(sink), tuple)
                assert cluster.connections == number
                await cluster.hang_up()

    play(scenario, count=1)


# Answers of every kind -----------------------------------------------------------------------------------------------

GARBAGE = {
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "AMQP": b"AMQP\x00\x00\x09\x01",
    "zeros": b"\0" * 100,
    "a document": b'{"password":"%s"}\r\n\r\n' % SECRET.encode(),
    "a status that is none": b"HTTP/1.1 99999 x\r\n\r\n",
    "a length that is none": b"HTTP/1.1 200 OK\r\ncontent-length: %s\r\n\r\n" % SECRET.encode(),
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    "a header without an end": b"HTTP/1.1 200 OK\r\nx: " + SECRET.encode() * 1000 + b"\r\n\r\n",
    "a chunk of no size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{%s}\r\n" % SECRET.encode(),
    "a chunk that is longer": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{%s}\r\n" % SECRET.encode(),
    "not gzip": reply(SECRET.encode() * 3, headers={"content-encoding": "gzip"}),
    "not deflate": reply(SECRET.encode() * 3, headers={"content-encoding": "deflate"}),
    "nothing": b"\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", list(GARBAGE))
def test_garbage_is_no_answer_and_none_of_it_is_told(name: str) -> None:
    """It is told in a line what is wrong; the bytes may be of a document."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            cluster.script.append(Act(answer=GARBAGE[name], end="close"))
            assert_unknown(await outcome(sink), cluster)

    play(scenario)


@pytest.mark.parametrize("status", [200, 413, 429, 503])
@pytest.mark.parametrize(
    "content_type", ["", "application/xml", "image/png", "garbage", "x/y; charset=nope", "text/html; charset=utf-16"]
)
def test_an_answer_counts_whatever_type_it_says_it_has(content_type: str, status: int) -> None:
    """A proxy's 413 in XML is a 413: the request must be split, not sent again as it is."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            cluster.script.append(Act(answer=reply(b"<page/>", status, headers={"content-type": content_type})))
            found = await outcome(sink)
            assert not isinstance(found, str)
            assert (found.status, found.body) == (status, b"<page/>")
            assert len(cluster.requests) == 1

    play(scenario)


FORMS = {
    "gzip": reply(STORED, compress=True),
    "gzip in chunks": reply(STORED, compress=True, framing="chunked"),
    "HTTP/1.0": reply(STORED, version="1.0", framing="close"),
    "after 100 and 103": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + reply(STORED),
}


@pytest.mark.parametrize("name", list(FORMS))
def test_an_answer_in_any_form_of_http_is_read(name: str) -> None:
    """Status and body are those of the last answer, unpacked."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            cluster.script.append(Act(answer=FORMS[name], end="close"))
            found = await outcome(sink)
            assert not isinstance(found, str)
            assert (found.status, found.body) == (200, reply(STORED).partition(b"\r\n\r\n")[2])

    play(scenario)


def test_what_comes_after_an_answer_is_nobodys_answer() -> None:
    """Bytes too many end the connection: read as the next answer, they would settle messages that were refused."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            for extra in (reply(STORED), reply(STORED)[:40], b"x"):
                cluster.script.extend([Act(answer=reply(REFUSED) + extra), Act(answer=reply(REFUSED))])
                found = [await outcome(sink), await outcome(sink)]
                answered = [one for one in found if not isinstance(one, str)]
                assert answered
                for one in answered:
                    assert not bulk.all_stored(one.body, 2)
                    assert [result.status for result in bulk.results(one.body, 2) or ()] == [400, 429]

    play(scenario, count=1)


@pytest.mark.parametrize("status", [413, 429])
@pytest.mark.filterwarnings("ignore:Sending a large body")
def test_an_answer_may_come_before_the_request_was_read(status: int) -> None:
    """Elasticsearch refuses a large body by its length."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            cluster.script.append(Act(answer=reply({}, status), answers_early=True))
            found = await outcome(sink, BODY * 100_000)
            assert not isinstance(found, str)
            assert found.status == status
            assert len(cluster.requests) == 1

    play(scenario)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_nothing_is_sent_there(status: int) -> None:
    """A POST would become a GET, and the login would go to somebody else."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster, cluster.urls[0]) as sink:
            target = f"{cluster.urls[1]}/es{PATH}"
            cluster.script.append(Act(answer=reply(STORED, status, headers={"location": target})))
            found = await outcome(sink)
            assert not isinstance(found, str)
            assert (found.status, found.location) == (status, f"{cluster.urls[1]}/es/")
            assert cluster.served == [1, 0]

    play(scenario, count=2)


def test_a_redirect_that_names_no_host_is_below_the_path_of_the_url() -> None:
    """A prefix of the URL is a part of where the request went."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster, f"{cluster.urls[0]}/es") as sink:
            cluster.script.append(Act(answer=reply(STORED, 302, headers={"location": "../login?a=b"})))
            found = await outcome(sink)
            assert not isinstance(found, str)
            assert found.location == f"{cluster.urls[0]}/es/login"

    play(scenario, count=1)


def test_an_answer_keeps_what_its_headers_say() -> None:
    """The pause that it asks for, the product, and nothing of what the last one said."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            asked = {"retry-after": "7", "x-elastic-product": "OpenSearch", "set-cookie": f"a={SECRET}"}
            cluster.script.append(Act(answer=reply(b"x", 429, headers=asked)))
            first, second = await outcome(sink), await outcome(sink)
            assert first == (429, b"x", 7.0, "OpenSearch", "")
            assert second == (200, reply(STORED).partition(b"\r\n\r\n")[2], 0.0, "Elasticsearch", "")
            assert "cookie" not in cluster.requests[1].headers

    play(scenario, count=1)


# What is sent --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_each_node_gets_the_same_request_to_the_byte(compress: bool) -> None:
    """Body, path, headers and login; whatever the body holds, and whether nodes before it were away or not."""
    body = random.Random(1).randbytes(50_000) + b"\n"

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster, compress=compress, api_key="id:key") as sink:
            for turn in range(4):
                if turn == 3:
                    await cluster.down(0)
                for _ in range(3):
                    assert isinstance(await outcome(sink, body), tuple)
        assert len(cluster.requests) == 12
        ports = {f"127.0.0.1:{port}" for port in cluster.ports}
        for request in cluster.requests:
            assert (request.method, request.path) == ("POST", PATH)
            assert (gzip.decompress(request.body) if compress else request.body) == body
            headers = request.headers
            assert headers.pop("host") in ports
            assert headers.pop("user-agent").startswith("elasticsearch-py/")
            assert headers.pop("x-elastic-client-meta")
            assert int(headers.pop("content-length")) == len(request.body)
            assert headers == {
                "connection": "keep-alive",
                "accept": bulk.ACCEPT,
                "content-type": bulk.CONTENT_TYPE,
                "authorization": "ApiKey aWQ6a2V5",
                **({"accept-encoding": "gzip", "content-encoding": "gzip"} if compress else {}),
            }

    play(scenario)


def test_a_request_that_is_not_about_documents_says_so() -> None:
    """JSON both ways, and its own method; a look at the root names no version, which 7 would refuse."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster, bearer_token="t") as sink:
            assert (await sink.request("PUT", "/_index_template/x", b'{"a":1}')).status == 200
            assert await sink.check() is None
        put, look = cluster.requests
        assert (put.method, put.path, put.body) == ("PUT", "/_index_template/x", b'{"a":1}')
        assert (put.headers["accept"], put.headers["content-type"]) == (bulk.ACCEPT, bulk.ACCEPT)
        assert (look.method, look.path, look.headers["accept"]) == ("GET", "/", "application/json")
        assert {put.headers["authorization"], look.headers["authorization"]} == {"Bearer t"}

    play(scenario)


def test_a_prefix_of_the_url_stands_before_every_path() -> None:
    """Elasticsearch may be below a path of a proxy; a look and a request find it there."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster, f"{cluster.urls[0]}/es/") as sink:
            await outcome(sink)
            await sink.check()
        assert [request.path for request in cluster.requests][:2] == [f"/es{PATH}", "/es/"]

    play(scenario, count=1)


# Whose turn it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 10])
def test_nodes_take_turns(at_once: int) -> None:
    """Each gets its share, one after the other or many at a time; nobody is asked that wasn't named."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            for _ in range(30 // at_once):
                await asyncio.gather(*(outcome(sink) for _ in range(at_once)))
        assert cluster.served == [10, 10, 10]
        assert {request.path for request in cluster.requests} == {PATH}, "no sniffing"

    play(scenario)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are away are looked after at once."""
    monkeypatch.setattr(sink_module, "_RETURN_MIN_SECONDS", 0.001)
    monkeypatch.setattr(sink_module, "_RETURN_MAX_SECONDS", 0.002)


async def until(holds: Callable[[], object]) -> None:
    """Wait for what other tasks bring about."""
    while not holds():  # noqa: ASYNC110 - the limit is the scenario's
        await asyncio.sleep(0.001)


@pytest.mark.usefixtures("soon")
def test_a_node_that_is_back_gets_its_share_again() -> None:
    """It is looked at with the login, until it answers as an Elasticsearch; no request is risked for that."""

    async def scenario(cluster: HttpCluster) -> None:
        await cluster.down(0)
        async with client(cluster) as sink:
            for _ in range(3):
                assert isinstance(await outcome(sink), tuple)
            assert [node.config.port for node in sink._pool.away.values()] == [cluster.ports[0]]
            for page in (reply(b"<html>", headers={"x-elastic-product": ""}), reply({}, 503), reply({}, 401)):
                strange = lambda request, page=page: page if request.node == 0 else stored(request)  # noqa: E731
                cluster.handler = strange
                cluster.requests.clear()
                await cluster.up(0)
                await until(lambda: cluster.served[0] >= 5)
                assert len(sink._pool.away) == 1
                await cluster.down(0)
            cluster.handler = stored
            cluster.requests.clear()
            await cluster.up(0)
            await until(lambda: not sink._pool.away)
            looks = [request for request in cluster.requests if request.is_whole]
            assert [(look.node, look.method, look.path) for look in looks] == [(0, "GET", "/")]
            assert looks[0].headers["authorization"].startswith("Basic ")
            cluster.requests.clear()
            for _ in range(30):
                assert isinstance(await outcome(sink), tuple)
            assert cluster.served == [10, 10, 10]
            await until(lambda: sink._returning is None or sink._returning.done())
            # And a second time.
            await cluster.down(2)
            for _ in range(3):
                assert isinstance(await outcome(sink), tuple)
            await cluster.up(2)
            await until(lambda: not sink._pool.away)

    play(scenario)


@pytest.mark.usefixtures("soon")
def test_a_node_behind_a_proxy_is_probed_where_requests_go() -> None:
    """The proxy passes bulk requests to one index, and nothing else."""

    async def scenario(cluster: HttpCluster) -> None:
        def proxied(request: Received) -> Any:
            if not request.path.startswith("/logs/_bulk"):
                return reply(b"<html>", 403, headers={"x-elastic-product": ""})
            return (
                stored(request) if request.body else reply({"error": {"type": "parse_exception"}, "status": 400}, 400)
            )

        cluster.handler = proxied
        await cluster.down(0)
        async with client(cluster, bulk_path="/logs/_bulk") as sink:
            for _ in range(3):
                await sink.bulk("/logs/_bulk", BODY)
            assert len(sink._pool.away) == 1
            await cluster.up(0)
            await until(lambda: not sink._pool.away)

    play(scenario)


@pytest.mark.usefixtures("soon")
def test_each_of_several_nodes_that_were_away_comes_back_by_itself() -> None:
    """One that stays away doesn't keep the others out."""

    async def scenario(cluster: HttpCluster) -> None:
        for node in (0, 1, 3):
            await cluster.down(node)
        async with client(cluster) as sink:
            while len(sink._pool.away) < 3:
                assert isinstance(await outcome(sink), tuple)
            for left, node in ((2, 1), (1, 3)):
                await cluster.up(node)
                await until(lambda left=left: len(sink._pool.away) == left)
            assert [node.config.port for node in sink._pool.away.values()] == [cluster.ports[0]]

    play(scenario, count=4)


@pytest.mark.parametrize(
    ("status", "is_left_out"),
    [(200, False), (400, False), (401, False), (404, False), (502, True), (503, True), (504, True)],
)
def test_a_node_that_is_not_ready_is_left_out(status: int, is_left_out: bool) -> None:
    """Its answer is handed on at once, whatever it says; the others do the work meanwhile."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            cluster.script.append(Act(answer=reply({}, status)))
            found = await outcome(sink)
            assert not isinstance(found, str)
            assert found.status == status
            assert len(cluster.requests) == 1
            assert len(sink._pool.away) == is_left_out
            assert (sink._returning is not None) == is_left_out

    play(scenario)


def test_a_node_alone_is_never_left_out() -> None:
    """There is no other, and the pipeline's own probes find out when it is back."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            cluster.script.append(Act(read_bytes=10, end="reset"))
            assert isinstance(await outcome(sink), str)
            assert isinstance(await outcome(sink), tuple)
            assert sink._returning is None

    play(scenario, count=1)


# Patience ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "act",
    [Act(end="hang"), Act(read_bytes=10, end="hang"), Act(answer=reply(STORED), send_bytes=20, end="hang"),
     Act(answer=reply(STORED), send_bytes=len(reply(STORED)) - 5, end="hang")],
    ids=["unanswered", "unread", "in the head", "in the body"],
)  # fmt: skip
def test_patience_ends_for_each_request_by_itself(act: Act) -> None:
    """Wherever it hangs: unknown, no other node, and no other request is cut off."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster, timeout_seconds=SHORT_SECONDS) as sink:
            cluster.script.append(act)
            found = await outcome(sink)
            assert isinstance(found, str)
            assert "timed out" in found
            assert_unknown(found, cluster)
            assert isinstance(await outcome(sink), tuple)

    play(scenario)


def test_a_look_has_less_patience_than_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for next to nothing; a request that takes long is waited for all the same."""
    monkeypatch.setattr(sink_module, "_LOOK_SECONDS", SHORT_SECONDS)

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster, cluster.urls[0], timeout_seconds=LIMIT_SECONDS) as sink:
            cluster.handler = lambda request: Act(end="hang") if request.method == "GET" else slowly
            slowly = Act(answer=reply(STORED), answers_early=False, waits=True)
            asked = asyncio.ensure_future(outcome(sink))
            await until(lambda: cluster.served[0] == 1)
            assert "timed out" in (await sink.check() or "")
            assert not asked.done()
            cluster.released.set()
            assert isinstance(await asked, tuple)

    play(scenario)


def test_a_look_has_no_more_patience_than_requests_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short SIDECAR_BULK_TIMEOUT counts for looks as well."""
    monkeypatch.setattr(sink_module, "_LOOK_SECONDS", 2 * LIMIT_SECONDS)

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster, cluster.urls[0], timeout_seconds=SHORT_SECONDS) as sink:
            cluster.script.append(Act(end="hang"))
            assert "timed out" in (await sink.check() or "")

    play(scenario)


def test_an_answer_that_comes_too_late_is_nobodys() -> None:
    """Its connection is gone; the next request isn't settled by it."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster, timeout_seconds=SHORT_SECONDS) as sink:
            cluster.script.append(Act(answer=reply(STORED), waits=True))
            assert isinstance(await outcome(sink), str)
            cluster.released.set()
            cluster.script.append(Act(answer=reply(REFUSED)))
            found = await outcome(sink)
            assert not isinstance(found, str)
            assert not bulk.all_stored(found.body, 2)
            assert cluster.requests[0].connection != cluster.requests[1].connection

    play(scenario, count=1)


def test_who_is_cut_off_leaves_no_connection_behind() -> None:
    """At the end of a drain requests are cancelled: nothing waits for their answers, and no node is blamed."""

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster) as sink:
            cluster.script.append(Act(end="hang"))
            asked = asyncio.ensure_future(sink.bulk(PATH, BODY))
            await until(lambda: sum(cluster.served) == 1)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert not sink._pool.away
        cluster.released.set()
        await until(lambda: cluster.open_connections == 0)

    play(scenario)


@pytest.mark.usefixtures("soon")
def test_closing_ends_connections_and_looks() -> None:
    """Those that are idle, and whoever looks after nodes that are away, even in the middle of a look."""

    async def scenario(cluster: HttpCluster) -> None:
        cluster.handler = lambda request: Act(end="hang") if request.method == "GET" else stored(request)
        async with client(cluster) as sink:
            cluster.script.append(Act(read_bytes=5, end="reset"))
            for _ in range(6):
                await outcome(sink)
            await until(lambda: any(request.method == "GET" for request in cluster.requests))
            assert cluster.open_connections >= 3
        cluster.released.set()
        await until(lambda: cluster.open_connections == 0)

    play(scenario)


STRANGER = reply(b"<html>no", 404, headers={"x-elastic-product": ""})


# Who answers ---------------------------------------------------------------------------------------------------------


def test_a_server_that_is_another_product_is_told() -> None:
    """By its own root, or by its answer to an empty bulk request where a proxy passes nothing else."""
    cases: list[tuple[Callable[[Received], bytes], str | None]] = [
        (lambda _: STRANGER, "is not Elasticsearch"),
        (lambda _: reply({"version": {"number": "7.17.29"}, "cluster_name": "c"}), "7.17.29 was found"),
        (lambda _: reply({}, 401, headers={"x-elastic-product": ""}), "or a proxy in front of it, answered 401"),
        (lambda _: reply({}, 401), "Elasticsearch answered 401"),
        (lambda _: reply({}, 503), "answered 503"),
        (lambda _: reply({}, 302, headers={"location": "/login?next=x"}), "points at"),
        (
            lambda request: (
                stored(request) if "_bulk" in request.path else reply(b"no", 404, headers={"x-elastic-product": ""})
            ),
            None,
        ),
        (stored, None),
    ]

    async def scenario(cluster: HttpCluster) -> None:
        async with client(cluster, cluster.urls[0]) as sink:
            for handler, word in cases:
                cluster.handler = handler
                found = await sink.check()
                assert (word in found) if word is not None and found is not None else found == word, (word, found)

    play(scenario, count=1)


def test_a_look_asks_no_more_than_it_needs() -> None:
    """The root; only if something else answers, a bulk request of nothing, at the path where bulk requests go."""

    async def scenario(cluster: HttpCluster) -> None:
        sink = ElasticsearchClient(Connection(urls=cluster.urls), bulk_path=PATH)
        assert await sink.check() is None
        cluster.handler = lambda _: STRANGER
        assert await sink.check() is not None
        cluster.handler = lambda _: reply(b"no", 503, headers={"x-elastic-product": ""})
        assert await sink.check() is not None
        await sink.close()
        asked = [(request.method, request.path, request.body) for request in cluster.requests]
        assert asked == [("GET", "/", b""), ("GET", "/", b""), ("POST", PATH, b""), ("GET", "/", b"")]
        assert cluster.requests[2].headers["content-type"] == bulk.CONTENT_TYPE

    play(scenario, count=1)
