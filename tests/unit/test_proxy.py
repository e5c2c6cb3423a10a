"""The proxy does to a connection what the tests of faults say that it does, and counts what they judge."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

BODY = b"GET / HTTP/1.1\r\n\r\n" * 5000  # it looks like requests, and is none


class Answering(BaseHTTPRequestHandler):
    """Answers everything."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Return a proxy before a server that answers everything."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}", http=True)
    yield proxy
    proxy.close()
    server.shutdown()
    server.server_close()


def ask(proxy: Proxy) -> bytes:
    client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=1.0)
    try:
        return ask_by(client)
    finally:
        client.close()


def ask_by(client: http.client.HTTPConnection) -> bytes:
    client.request("POST", "/x", BODY)
    return client.getresponse().read()


def test_it_cuts_stalls_and_loses_answers_and_counts_requests(proxy: Proxy) -> None:
    """Each fault shows as what it is, and after each of them everything flows again."""
    assert ask(proxy) == b"ok"
    proxy.cut()
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)
    proxy.lift()
    assert ask(proxy) == b"ok"
    assert len(proxy.requests) == 2
    for fault in (proxy.stall, proxy.lose_answers):
        fault()
        with pytest.raises(TimeoutError):
            ask(proxy)
        proxy.lift()
        assert ask(proxy) == b"ok"
    assert [(request.path, request.body_bytes) for request in proxy.requests] == [("/x", len(BODY))] * 6
    assert proxy.count(proxy.requests[0].at, proxy.requests[-1].at) == 6


def test_open_connections_are_reset_by_a_drop(proxy: Proxy) -> None:
    """New ones are as welcome as before."""
    client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5.0)
    assert ask_by(client) == b"ok"
    proxy.drop()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        ask_by(client)
    client.close()
    assert ask(proxy) == b"ok"
