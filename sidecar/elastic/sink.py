"""Bulk requests over elasticsearch-py: bytes in, bytes out, one try each.

The client's own retries are off (a server that always said 429 got four requests within 1.4 ms): only the pipeline
retries. Its transport passes ready bytes on as they are, and the answer is not parsed unless somebody needs to.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from elastic_transport import Serializer, TransportError
from elastic_transport.client_utils import basic_auth_to_header
from elasticsearch import AsyncElasticsearch

from sidecar.core.bulk import ACCEPT, CONTENT_TYPE
from sidecar.errors import SinkError
from sidecar.ports import Answer

if TYPE_CHECKING:
    from elastic_transport import HttpHeaders

# The client logs every request at info, and the bodies at debug: documents must never reach a log.
for _name in ("elastic_transport", "elastic_transport.node", "elasticsearch"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_REFUSED_LOGIN = frozenset({401, 403})
_NOT_THERE_YET = frozenset({502, 503, 504})
_HEADERS = {"accept": ACCEPT, "content-type": CONTENT_TYPE}


class _Raw(Serializer):
    """Leaves bytes as they are, both ways."""

    mimetype: ClassVar[str] = "application/vnd.elasticsearch+json"

    def loads(self, data: bytes) -> bytes:
        return data

    def dumps(self, data: bytes) -> bytes:
        return data


_RAW = _Raw()
_MIMETYPES = (
    "application/vnd.elasticsearch+json",
    "application/vnd.elasticsearch+x-ndjson",
    "application/json",
    "application/x-ndjson",
    "text/*",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach Elasticsearch; the meaning of each is that of the setting of its name."""

    urls: tuple[str, ...]
    username: str | None = None
    password: str | None = None
    timeout_seconds: float = 60.0
    compress: bool = False


class ElasticSink:
    """The port `sidecar.ports.Sink` over elasticsearch-py.

    Args:
        connection: how to reach the cluster.
    """

    def __init__(self, connection: Connection) -> None:
        self._login: dict[str, str] = {}
        if connection.username is not None:
            self._login["authorization"] = basic_auth_to_header((connection.username, connection.password or ""))
        self._client = AsyncElasticsearch(
            list(connection.urls),
            request_timeout=connection.timeout_seconds,
            http_compress=connection.compress,
            max_retries=0,
            retry_on_timeout=False,
            serializers=dict.fromkeys(_MIMETYPES, _RAW),
            # One pool of connections serves all requests; a node that failed is tried again after seconds, not minutes.
            max_dead_node_backoff=5.0,
        )

    async def bulk(self, path: str, body: bytes) -> Answer:
        """Send one request and return the answer, whatever it says.

        Raises:
            SinkError: no answer came, so the outcome is unknown.
        """
        return await self._perform("POST", path, body, _HEADERS)

    async def unavailable(self) -> str | None:
        """Return why Elasticsearch can't be used now; None when it answers.

        Asks for what costs nothing and needs no privilege, only a login.
        """
        try:
            answer = await self._perform("GET", "/", None, {"accept": ACCEPT})
        except SinkError as error:
            return str(error)
        if answer.status in _REFUSED_LOGIN:
            return f"Elasticsearch answered {answer.status}: it doesn't accept the login"
        if answer.status in _NOT_THERE_YET:
            return f"Elasticsearch answered {answer.status}: it is not there yet"
        return None

    async def _perform(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        try:
            meta, answer = await self._client.transport.perform_request(
                method, path, body=body, headers={**headers, **self._login}
            )
        except TransportError as error:
            # The message names the node and what went wrong with it; the body is not in it.
            raise SinkError(f"no answer from Elasticsearch: {error.message}") from error
        except ValueError as error:
            raise SinkError(f"no answer from Elasticsearch: {error}") from error
        return Answer(meta.status, answer if isinstance(answer, bytes) else b"", _retry_after(meta.headers))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


def _retry_after(headers: HttpHeaders) -> float:
    try:
        return max(0.0, float(headers.get("retry-after") or 0))
    except ValueError:  # a date, which Elasticsearch doesn't send
        return 0.0
