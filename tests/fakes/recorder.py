"""An Elasticsearch that says yes to everything, over real HTTP, and a client for a scenario."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from sidecar.elasticsearch.client import Connection, ElasticsearchClient

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Recorder:
    """An Elasticsearch that says yes to everything and remembers who asked."""

    def __init__(self, port: int | None = None) -> None:
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one piece, or the second waits for an ack

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                recorder.requests.append((self.command, self.headers.get("authorization")))
                self.send_response(recorder.status)
                self.send_header("content-type", "application/json")
                self.send_header("x-elastic-product", "Elasticsearch")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_POST = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self.requests: list[tuple[str, str | None]] = []
        self.status = 200
        self.server = ThreadingHTTPServer(("127.0.0.1", port or 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()


def using(connection: Connection, use: Callable[[ElasticsearchClient], Coroutine[Any, Any, Any]]) -> Any:
    """Run something with a sink, in a loop of its own."""

    async def scenario() -> Any:
        sink = ElasticsearchClient(connection)
        try:
            return await use(sink)
        finally:
            await sink.close()

    return asyncio.run(scenario())
