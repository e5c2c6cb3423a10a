"""What stands at Elasticsearch's address and is not Elasticsearch."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.elasticsearch.client import Connection, ElasticsearchClient
from tests.fakes.tls import Acceptor, listening

JSON = "application/json"
STRANGERS = {
    "404 page of a proxy": (404, {"content-type": "text/html"}, b"<html><title>404 Not Found</title></html>"),
    "login page": (200, {"content-type": "text/html"}, b"<!DOCTYPE html><form><input name=password></form>"),
    "empty 200": (200, {}, b""),
    "JSON 404 of another service": (404, {"content-type": JSON}, b'{"status":404,"error":"Not Found","path":"/"}'),
    "Kibana's 404": (404, {"content-type": JSON}, b'{"statusCode":404,"error":"Not Found","message":"Not Found"}'),
}


def unavailable(answer: bytes) -> str:
    """Return what is said of a server that answers so, whatever it is asked."""

    async def speak(_: Acceptor, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async def scenario() -> str | None:
        async with listening(speak, None) as acceptor:
            sink = ElasticsearchClient(Connection(urls=(f"http://127.0.0.1:{acceptor.port}",)))
            try:
                return await sink.check()
            finally:
                await sink.close()

    return asyncio.run(scenario()) or ""


@pytest.mark.parametrize("name", STRANGERS)
def test_a_server_that_is_not_elasticsearch_was_not_reached(name: str) -> None:
    """Its answer has neither the header nor the shape."""
    status, headers, body = STRANGERS[name]
    lines = [f"HTTP/1.1 {status} x", *(f"{name}: {text}" for name, text in headers.items()), "connection: close"]
    head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
    assert f"the server that answered {status} is not Elasticsearch" in unavailable(head.encode() + body)


def test_a_port_that_does_not_speak_http_is_told_in_one_line() -> None:
    """RabbitMQ's own, say."""
    reason = unavailable(b"AMQP\0\0\x09\1")
    assert reason.startswith("no answer from Elasticsearch: ")
    assert "\n" not in reason
