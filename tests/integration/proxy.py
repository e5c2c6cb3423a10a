"""What stands between the sidecar and Elasticsearch, and changes what passes or answers in its place."""

from __future__ import annotations

import http.client
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Call:
    """A bulk request on its way to Elasticsearch."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An answer on its way back."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Proxy:
    """Stands before an Elasticsearch, and changes the bulk requests that pass, or answers them itself.

    Args:
        url: of the Elasticsearch.

    Attributes:
        change: called with each bulk request; returns what goes on instead, an answer instead of Elasticsearch's, or
            None to break the connection.
        calls: bulk requests that came.
    """

    def __init__(self, url: str) -> None:
        self.change: Callable[[Call], Call | Reply | None] = as_it_is
        self.calls = 0
        self._target = urlsplit(url)
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one piece, or the second waits for an ack

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                call: Call | Reply | None = Call(self.path, dict(self.headers.items()), body)
                if self.command == "POST":
                    with proxy._lock:
                        proxy.calls += 1
                        call = proxy.change(call)
                reply = proxy.pass_on(self.command, call) if isinstance(call, Call) else call
                if reply is None:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in {"content-type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            do_GET = do_POST = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def pass_on(self, method: str, call: Call) -> Reply:
        """Have Elasticsearch answer."""
        connection = http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=60.0)
        headers = {
            name: value for name, value in call.headers.items() if name.lower() not in {"host", "content-length"}
        }
        try:
            connection.request(method, call.path, call.body or None, headers)
            answer = connection.getresponse()
            kept = {
                name: answer.headers[name] for name in ("content-type", "x-elastic-product") if name in answer.headers
            }
            return Reply(answer.status, answer.read(), kept)
        finally:
            connection.close()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def as_it_is(call: Call) -> Call:
    """Change nothing."""
    return call
