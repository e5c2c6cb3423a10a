"""A small blocking Elasticsearch client over ``http.client``: what tests ask, in bytes where bytes matter."""

from __future__ import annotations

import base64
import http.client
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable, Iterator, Mapping

TIMEOUT_SECONDS = 60.0
_PAGE_DOCUMENTS = 5000
_FIRST_ERROR = 400
_NOT_FOUND = 404

Json = Any  # what json.loads gives; tests know what they look at


class ElasticError(Exception):
    """Elasticsearch answered a request of the test itself with an error."""

    def __init__(self, status: int, body: bytes) -> None:
        """Keep status and body of the answer."""
        super().__init__(f"{status}: {body[:2000].decode(errors='replace')}")
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class Answer:
    """A response."""

    status: int
    body: bytes

    def json(self) -> Json:
        """Return the body decoded."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document. `source` is its exact text, the spelling of every number included."""

    index: str
    id: str
    source: bytes
    version: int
    routing: str | None

    def json(self) -> Json:
        """Return the source decoded."""
        return json.loads(self.source)


@dataclass(frozen=True, slots=True)
class WritePool:
    """The write thread pool since the node started; `rejected` are the 429s of shards, not of documents."""

    active: int
    queue: int
    rejected: int
    completed: int


class Elastic:
    """A connection that reconnects by itself. Not for use by several threads."""

    def __init__(
        self,
        url: str,
        *,
        username: str = "",
        password: str = "",
        timeout_seconds: float = TIMEOUT_SECONDS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Remember where to go; nothing is sent yet."""
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port or 9200
        self._connection = (
            http.client.HTTPSConnection(host, port, timeout=timeout_seconds, context=tls)
            if parts.scheme == "https"
            else http.client.HTTPConnection(host, port, timeout=timeout_seconds)
        )
        username = username or parts.username or ""
        password = password or parts.password or ""
        credentials = base64.b64encode(f"{username}:{password}".encode()).decode("ascii")
        self._headers = {"Authorization": f"Basic {credentials}"} if username else {}

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def send(
        self, method: str, path: str, body: Json | bytes = None, *, content_type: str = "application/json"
    ) -> Answer:
        """Send a request and return its answer, whatever the status.

        Raises:
            OSError: nobody answers there.
        """
        payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = dict(self._headers) if payload is None else {**self._headers, "Content-Type": content_type}
        try:
            return self._exchange(method, path, payload, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # A server that was restarted since the last request, on a connection that was kept: try a fresh one.
            return self._exchange(method, path, payload, headers)

    def call(self, method: str, path: str, body: Json | bytes = None) -> Json:
        """Send a request and return its decoded answer.

        Raises:
            ElasticError: the status is 400 or above.
        """
        answer = self.send(method, path, body)
        if answer.status >= _FIRST_ERROR:
            raise ElasticError(answer.status, answer.body)
        return answer.json() if answer.body else None

    def bulk(self, lines: bytes, *, query: str = "") -> Answer:
        """Send a ``_bulk`` body as it is."""
        return self.send("POST", f"/_bulk{query}", lines, content_type="application/x-ndjson")

    # -- indices ---------------------------------------------------------------------------------------------------

    def create_index(
        self,
        index: str,
        *,
        settings: Mapping[str, Json] | None = None,
        mappings: Mapping[str, Json] | None = None,
        aliases: Mapping[str, Json] | None = None,
    ) -> None:
        """Create an index; one shard without replicas unless the settings say otherwise."""
        merged = {"number_of_shards": 1, "number_of_replicas": 0, **(settings or {})}
        self.call("PUT", _path(index), {"settings": merged, "mappings": mappings or {}, "aliases": aliases or {}})

    def put_template(
        self, name: str, patterns: Iterable[str], template: Mapping[str, Json] | None = None, **options: Json
    ) -> None:
        """Install an index template; ``data_stream={}`` among the options makes it one for data streams."""
        body = {"index_patterns": list(patterns), "template": template or {}, "priority": 500, **options}
        self.call("PUT", f"/_index_template/{quote(name, safe='')}", body)

    def delete_template(self, name: str) -> None:
        """Remove an index template; one that doesn't exist is no error."""
        self._delete(f"/_index_template/{quote(name, safe='')}")

    def put_settings(self, index: str, settings: Mapping[str, Json]) -> None:
        """Change dynamic settings (``{"index.blocks.write": True}``)."""
        self.call("PUT", f"{_path(index)}/_settings", dict(settings))

    def delete_index(self, index: str) -> None:
        """Remove an index, alias' target or pattern; one that doesn't exist is no error."""
        self._delete(f"{_path(index)}?ignore_unavailable=true")

    def index_exists(self, index: str) -> bool:
        """Tell whether an index, alias or data stream of that name exists."""
        return self.send("HEAD", _path(index)).status != _NOT_FOUND

    def refresh(self, index: str) -> None:
        """Make all that was stored visible to searches."""
        self.call("POST", f"{_path(index)}/_refresh")

    # -- documents -------------------------------------------------------------------------------------------------

    def put(self, index: str, identifier: str, source: Json | bytes) -> None:
        """Store a document."""
        self.call("PUT", f"{_path(index)}/_doc/{quote(identifier, safe='')}", source)

    def source(self, index: str, identifier: str, *, routing: str = "") -> bytes | None:
        """Return the exact text of a document, refreshed or not, or None where there is none."""
        query = f"?routing={quote(routing, safe='')}" if routing else ""
        answer = self.send("GET", f"{_path(index)}/_source/{quote(identifier, safe='')}{query}")
        if answer.status == _NOT_FOUND:
            return None
        if answer.status >= _FIRST_ERROR:
            raise ElasticError(answer.status, answer.body)
        return answer.body

    def count(self, index: str, query: Mapping[str, Json] | None = None, *, refresh: bool = True) -> int:
        """Return how many documents there are, after a refresh; 0 where the index doesn't exist."""
        if refresh and not self._refreshed(index):
            return 0
        body = None if query is None else {"query": query}
        count: int = self.call("POST", f"{_path(index)}/_count?ignore_unavailable=true", body)["count"]
        return count

    def documents(self, index: str, query: Mapping[str, Json] | None = None, *, refresh: bool = True) -> list[Document]:
        """Return all documents, after a refresh, in no order; none where the index doesn't exist."""
        if refresh and not self._refreshed(index):
            return []
        body = {"size": _PAGE_DOCUMENTS, "sort": ["_doc"], "version": True, "query": query or {"match_all": {}}}
        found: list[Document] = []
        path: str = f"{_path(index)}/_search?scroll=2m"
        while True:
            answer = self.send("POST", path, body)
            if answer.status >= _FIRST_ERROR:
                raise ElasticError(answer.status, answer.body)
            page, scroll_id = parse_hits(answer.body)
            found += page
            if len(page) < _PAGE_DOCUMENTS:
                break
            path, body = "/_search/scroll", {"scroll": "2m", "scroll_id": scroll_id}
        self.send("DELETE", "/_search/scroll", {"scroll_id": scroll_id})
        return found

    def by_id(self, index: str) -> dict[str, Document]:
        """Return all documents by their id."""
        return {document.id: document for document in self.documents(index)}

    # -- cluster ---------------------------------------------------------------------------------------------------

    def write_pool(self) -> WritePool:
        """Return the write thread pool's numbers, summed over the nodes."""
        nodes = self.call("GET", "/_nodes/stats/thread_pool")["nodes"].values()
        pools = [node["thread_pool"]["write"] for node in nodes]
        names = ("active", "queue", "rejected", "completed")
        return WritePool(**{name: sum(pool[name] for pool in pools) for name in names})

    def put_cluster_settings(self, settings: Mapping[str, Json]) -> None:
        """Change settings of the cluster until its next restart; None resets one. What is set stays: reset it."""
        # Transient settings are deprecated and warn; persistent ones last longer than the test, as said above.
        self.call("PUT", "/_cluster/settings", {"persistent": dict(settings)})

    def _refreshed(self, index: str) -> bool:
        answer = self.send("POST", f"{_path(index)}/_refresh")
        if answer.status >= _FIRST_ERROR and answer.status != _NOT_FOUND:
            raise ElasticError(answer.status, answer.body)
        return answer.status != _NOT_FOUND

    def _delete(self, path: str) -> None:
        answer = self.send("DELETE", path)
        if answer.status >= _FIRST_ERROR and answer.status != _NOT_FOUND:
            raise ElasticError(answer.status, answer.body)

    def _exchange(self, method: str, path: str, payload: bytes | None, headers: dict[str, str]) -> Answer:
        try:
            self._connection.request(method, path, payload, headers)
            response = self._connection.getresponse()
            return Answer(response.status, response.read())
        except BaseException:
            # Half-way through an exchange a connection is of no more use.
            self._connection.close()
            raise


def _path(index: str) -> str:
    """Return the path of an index or pattern; commas and stars keep their meaning."""
    return "/" + quote(index, safe=",*")


_decoder = json.JSONDecoder()


def parse_hits(body: bytes) -> tuple[list[Document], str]:
    """Return the documents of a search response with the exact text of their sources, and the scroll id.

    A JSON parser gives numbers, not their spelling: so the members of each hit are walked through with the decoder's
    positions, and the source is cut out of the text.
    """
    text = body.decode()
    scroll_id = ""
    documents: list[Document] = []
    for name, start, end in _members(text, _skip(text, 0)):
        if name == "_scroll_id":
            scroll_id = json.loads(text[start:end])
        elif name == "hits":
            for inner, inner_start, _ in _members(text, start):
                if inner == "hits":
                    documents = [_document(text, at) for at in _items(text, inner_start)]
    return documents, scroll_id


def _document(text: str, at: int) -> Document:
    parts = {name: text[start:end] for name, start, end in _members(text, at)}
    return Document(
        index=json.loads(parts["_index"]),
        id=json.loads(parts["_id"]),
        source=parts.get("_source", "").encode(),
        version=json.loads(parts.get("_version", "0")),
        routing=json.loads(parts.get("_routing", "null")),
    )


def _members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, begin and end of each value of the object at a position."""
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, at = _decoder.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        _, end = _decoder.raw_decode(text, start)
        yield name, start, end
        at = _after_comma(text, end)


def _items(text: str, at: int) -> Iterator[int]:
    """Yield where each item of the array at a position begins."""
    at = _skip(text, at + 1)
    while text[at] != "]":
        yield at
        _, end = _decoder.raw_decode(text, at)
        at = _after_comma(text, end)


def _after_comma(text: str, at: int) -> int:
    at = _skip(text, at)
    return _skip(text, at + 1) if text[at] == "," else at


def _skip(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at
