"""Bulk requests over elasticsearch-py: bytes in, bytes out, one try each.

The client's own retries are off (a server that always said 429 got four requests within 1.4 ms): only the pipeline
retries. Its transport passes ready bytes on as they are, and the answer is not parsed unless somebody needs to.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import aiohttp
from elastic_transport import BaseAsyncNode, NodeConfig, NodePool, Serializer, SerializerCollection, TransportError
from elastic_transport.client_utils import basic_auth_to_header, parse_cloud_id
from elasticsearch import AsyncElasticsearch
from yarl import URL

from sidecar import tls
from sidecar.core.results.bulk import ACCEPT
from sidecar.elasticsearch.node import BULK_HEADERS, BULK_PATH, Node, as_answer, find_obstacle
from sidecar.errors import ConfigError, SinkError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from elastic_transport import AsyncTransport, BaseNode, HttpHeaders

    from sidecar.ports import Answer

# The client logs every request at info, and the bodies at debug: documents must never reach a log.
for _name in ("elastic_transport", "elastic_transport.node", "elasticsearch"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_LOOK_SECONDS = 10.0
"""How long a look at a node may take: it asks for next to nothing."""
_ADDRESS = re.compile(r"(https?://[^/\s?]+)[^\s]*")
_BYTES = re.compile(r"\W*\bb['\"].*", re.DOTALL)
"""Bytes of an answer that aiohttp quotes: they may be of a document."""
_RETURN_MIN_SECONDS = 0.5
_RETURN_MAX_SECONDS = 5.0


class _Raw(Serializer):
    """Leaves bytes as they are, both ways."""

    mimetype: ClassVar[str] = "application/json"

    def loads(self, data: bytes) -> bytes:
        return data

    def dumps(self, data: bytes) -> bytes:
        return data


class _Raws(SerializerCollection):
    """Leaves bytes as they are, whatever type an answer says it has: its status counts, even with a page of a proxy."""

    def get_serializer(self, _mimetype: str | None) -> Serializer:
        return self.default_serializer


def pass_bytes(transport: AsyncTransport) -> None:
    """Have a transport pass on the bytes of requests and answers as they are."""
    transport.serializers = _Raws({_Raw.mimetype: _Raw()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach Elasticsearch; the meaning of each is that of the setting of its name.

    Attributes:
        urls: of nodes of one cluster. A login in one of them counts for all, unless there is another.
        api_key: as Elasticsearch encodes it, or ``id:key``.
        cloud_id: takes the place of `urls`.
        tls: for ``https``; without it the system's authorities are trusted.
    """

    urls: tuple[str, ...] = field(default=(), repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    bearer_token: str | None = field(default=None, repr=False)
    cloud_id: str | None = None
    tls: ssl.SSLContext | None = None
    timeout_seconds: float = 60.0
    compress: bool = False


def authorization(connection: Connection) -> str | None:
    """Return the header that logs in; None where there is no login.

    Raises:
        ConfigError: the URLs hold several logins.
    """
    if connection.api_key is not None:
        key = connection.api_key.strip()
        return f"ApiKey {base64.b64encode(key.encode()).decode('ascii') if ':' in key else key}"
    if connection.bearer_token is not None:
        return f"Bearer {connection.bearer_token.strip()}"
    if connection.username is not None:
        return basic_auth_to_header((connection.username, connection.password or ""))
    urls = [] if connection.cloud_id is not None else [URL(text) for text in connection.urls]
    logins = {(url.user or "", url.password or "") for url in urls if url.user or url.password}
    if len(logins) > 1:
        raise ConfigError(["the Elasticsearch URLs hold different logins; one counts for all nodes"])
    return basic_auth_to_header(logins.pop()) if logins else None


def nodes(connection: Connection) -> list[NodeConfig]:
    """Return the nodes to talk to, each once, without logins.

    Raises:
        ConfigError: the cloud id is none.
    """
    if connection.cloud_id is None:
        urls = [URL(text) for text in connection.urls]
    else:
        try:
            address = parse_cloud_id(connection.cloud_id).es_address
        except ValueError:
            address = None
        if address is None:
            raise ConfigError(["the cloud id of Elasticsearch is not one: copy it from the deployment's page"])
        urls = [URL.build(scheme="https", host=address[0], port=address[1])]
    context = connection.tls
    if context is None and any(url.scheme == "https" for url in urls):
        context = ssl.create_default_context()
    return list(dict.fromkeys(_node(url, context) for url in urls))


def _node(url: URL, context: ssl.SSLContext | None) -> NodeConfig:
    prefix = url.raw_path.rstrip("/")
    encrypted = url.scheme == "https"
    # yarl knows the ports of both schemes.
    return NodeConfig(
        url.scheme, url.raw_host or "", url.port or 0, path_prefix=prefix, ssl_context=context if encrypted else None
    )


class _Nodes(NodePool):
    """Nodes in turn, but for those that failed: they are out until somebody has seen them answer.

    The pool of elastic_transport tries a failed node again after seconds, with the next requests: where it is still
    away they go without an answer, and the cluster looks as if it were. With none left, all are tried in turn.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - the superclass's business
        super().__init__(*arguments, **options)
        self.away: dict[NodeConfig, BaseNode] = {}

    def get(self) -> BaseNode:
        everyone = self.all()
        return self.node_selector.select([node for node in everyone if node.config not in self.away] or everyone)

    def mark_dead(self, node: BaseNode, _now: float | None = None) -> None:
        self.away[node.config] = node

    def mark_live(self, node: BaseNode) -> None:
        self.away.pop(node.config, None)


class ElasticsearchClient:
    """The port `sidecar.ports.Sink` over elasticsearch-py.

    Args:
        connection: how to reach the cluster.
        bulk_path: where bulk requests go, for checks through a proxy that passes nothing else.

    Raises:
        ConfigError: several logins, or a wrong cloud id.
    """

    def __init__(self, connection: Connection, *, bulk_path: str = BULK_PATH) -> None:
        login = authorization(connection)
        self._login = {"authorization": login} if login is not None else {}
        configs = nodes(connection)
        self._client = AsyncElasticsearch(
            configs,
            http_compress=connection.compress,
            node_pool_class=_Nodes,
            node_class=Node,
        )
        pass_bytes(self._client.transport)
        self._bulk_path = bulk_path
        self._pool = cast("_Nodes", self._client.transport.node_pool)
        self._timeout_seconds = connection.timeout_seconds
        self._look_seconds = min(_LOOK_SECONDS, connection.timeout_seconds)
        self._returning: asyncio.Task[None] | None = None

    async def bulk(self, path: str, body: bytes) -> Answer:
        """Send one request and return the answer, whatever it says.

        Raises:
            SinkError: no answer came, so the outcome is unknown.
        """
        return await self._perform("POST", path, body, BULK_HEADERS)

    async def request(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """Send a request that isn't about documents, JSON if anything, and return the answer, whatever it says.

        Raises:
            SinkError: no answer came.
        """
        return await self._perform(method, path, body, {"accept": ACCEPT, "content-type": ACCEPT})

    async def check(self) -> str | None:
        """Return why Elasticsearch can't be used now; None when it answers.

        Asks for what costs nothing and needs no privilege, only a login.
        """
        try:
            found = await find_obstacle(self._request_shortly, self._bulk_path)
        except SinkError as error:
            return str(error)
        return str(found) if found is not None else None

    async def _request_shortly(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        return await self._perform(method, path, None, headers, self._look_seconds)

    async def _perform(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], seconds: float | None = None
    ) -> Answer:
        """Send a request to a node; where it can't be reached at all, and so has seen nothing of it, to the next.

        Raises:
            SinkError: no answer came.
        """
        seconds = seconds or self._timeout_seconds
        for others in reversed(range(len(self._pool.all()))):
            try:
                meta, answer = await self._client.transport.perform_request(
                    method,
                    path,
                    body=body,
                    headers={**headers, **self._login},
                    # What the client is told of these counts for its API methods only, and not here below them.
                    max_retries=0,
                    request_timeout=seconds,
                )
            except TransportError as error:
                self._start_node_recovery()
                if others and _never_sent(error):
                    continue
                raise SinkError(f"no answer from Elasticsearch: {describe_error(error)}") from error
            except ValueError as error:
                raise SinkError(f"no answer from Elasticsearch: {error}") from error
            if self._pool.away:
                self._start_node_recovery()
            return as_answer(meta, answer, path)
        raise SinkError("no answer from Elasticsearch: it has no nodes")

    def _start_node_recovery(self) -> None:
        """Have somebody look whether nodes are back. A node alone needs no looking after: it is asked anyway."""
        busy = self._returning is not None and not self._returning.done()
        if len(self._pool.all()) > 1 and not busy:
            self._returning = asyncio.create_task(self._recover_nodes())

    async def _recover_nodes(self) -> None:
        pause = _RETURN_MIN_SECONDS
        while self._pool.away:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RETURN_MAX_SECONDS)
            await asyncio.gather(*(self._ping(node) for node in list(self._pool.away.values())))

    async def _ping(self, node: BaseNode) -> None:
        async def ask(method: str, path: str, headers: Mapping[str, str]) -> Answer:
            sent = cast("HttpHeaders", {**headers, **self._login})
            answer = await cast("BaseAsyncNode", node).perform_request(
                method, path, headers=sent, request_timeout=self._look_seconds
            )
            return as_answer(answer.meta, answer.body, path)

        with suppress(TransportError, OSError, ValueError):
            if await find_obstacle(ask, self._bulk_path) is None:
                self._pool.mark_live(node)

    async def close(self) -> None:
        """Close all connections."""
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.wait([self._returning])
        await self._client.close()


def _never_sent(error: TransportError) -> bool:
    """Tell whether no connection came about, so that no node has seen anything of the request."""
    return isinstance(_cause(error), aiohttp.ClientConnectorError)


def describe_error(error: TransportError) -> str:
    """Return what went wrong: the node is in it, the request and its login are not."""
    cause = _cause(error)
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        return f"{cause.host}:{cause.port}: {tls.explain(cause.certificate_error)}"
    if isinstance(cause, aiohttp.ClientConnectorError) and (isinstance(cause, ssl.SSLError) or not cause.os_error.args):
        return f"{cause.host}:{cause.port}: {tls.explain(cause.os_error)}"
    if isinstance(cause, aiohttp.ClientOSError) and isinstance(cause.__cause__, ssl.SSLError):
        return tls.explain(cause.__cause__)
    if isinstance(cause, aiohttp.ServerDisconnectedError):  # with a part of the answer in it, if there was one
        return "Server disconnected"
    text = f"the answer is not valid HTTP: {cause.message}" if isinstance(cause, aiohttp.ClientResponseError) else ""
    # Not the path of each request, and one line, even if what answers doesn't speak HTTP.
    return _ADDRESS.sub(r"\1", " ".join(_BYTES.sub("", text or str(error.message)).split()))


def _cause(error: TransportError) -> BaseException | None:
    """Return what aiohttp said; the transport empties its own list of causes."""
    return error.__cause__ or error.__context__
