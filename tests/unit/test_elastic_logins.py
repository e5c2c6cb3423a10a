"""Every way to log in to Elasticsearch, from the settings to the bytes on the wire."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import TYPE_CHECKING, Any

import pytest

from sidecar.cli.wiring import elasticsearch
from sidecar.config.settings import load_without_required
from sidecar.elasticsearch import client as sink_module
from sidecar.elasticsearch.client import Connection, ElasticsearchClient
from sidecar.errors import ConfigError, SinkError
from tests.fakes.http_server import Act, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.http_server import HttpCluster

PASSWORD = "s3cret/with:odd@signs é"
IN_URL = "elastic:s3cret%2Fwith%3Aodd%40signs%20%C3%A9"
ITEM = b'{"index":{}}\n{"n":1}\n'


def basic(text: str) -> str:
    """Return the header of basic authentication."""
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def connection(**settings: str) -> Connection:
    """Return what the settings say."""
    loaded, _ = load_without_required({f"SIDECAR_ELASTICSEARCH_{name}": text for name, text in settings.items()})
    return elasticsearch(loaded)


WAYS: dict[str, tuple[dict[str, str], str | None]] = {
    "none": ({}, None),
    "password": ({"USERNAME": "elastic", "PASSWORD": PASSWORD}, basic(f"elastic:{PASSWORD}")),
    "password of another": ({"USERNAME": "kibana", "PASSWORD": "x"}, basic("kibana:x")),
    "key, encoded": ({"API_KEY": "aWQ6a2V5"}, "ApiKey aWQ6a2V5"),
    "key, in two parts": ({"API_KEY": "id:key"}, "ApiKey aWQ6a2V5"),
    "token": ({"BEARER_TOKEN": "t.o-k_e.n"}, "Bearer t.o-k_e.n"),
}


@pytest.mark.parametrize("name", list(WAYS))
@pytest.mark.parametrize("by_file", [False, True])
def test_each_way_to_log_in_has_its_header(name: str, by_file: bool, tmp_path: Path) -> None:
    """On each request to each node, looks at a node that was away included; a file may end in a line break."""
    given, expected = WAYS[name]
    if by_file:
        for setting in ("PASSWORD", "API_KEY", "BEARER_TOKEN"):
            if setting in given:
                (tmp_path / setting).write_text(given[setting] + "\n")
        given = {
            f"{setting}_FILE" if (tmp_path / setting).exists() else setting: str(tmp_path / setting)
            if (tmp_path / setting).exists()
            else text
            for setting, text in given.items()
        }

    async def scenario() -> None:
        async with running(2) as cluster:
            sink = ElasticsearchClient(connection(**given, URL=",".join(cluster.urls)))
            for _ in range(2):
                assert await sink.check() is None
                await sink.bulk("/_bulk", ITEM)
                await sink.request("PUT", "/x", b"{}")
            for node in sink._pool.all():
                await sink._ping(node)
            await sink.close()
            assert cluster.served == [4, 4]
            assert {request.headers.get("authorization") for request in cluster.requests} == {expected}
            assert {request.headers["user-agent"].partition("/")[0] for request in cluster.requests} == {
                "elasticsearch-py"
            }

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"username": "elastic"}, basic("elastic:")),
        ({"username": "", "password": "x"}, basic(":x")),
        ({"api_key": " aWQ6a2V5\n"}, "ApiKey aWQ6a2V5"),
        ({"api_key": "id:k:e:y\n"}, "ApiKey aWQ6azplOnk="),
        ({"bearer_token": "\tt.o-k_e.n "}, "Bearer t.o-k_e.n"),
        ({"urls": ("http://a:1", "http://u:p@b:1", "http://u:p@c:1")}, basic("u:p")),
        ({"urls": ("http://u@a:1",)}, basic("u:")),
        ({"urls": ("http://u:p@a:1",), "api_key": "aWQ6a2V5"}, "ApiKey aWQ6a2V5"),
        ({"urls": ("http://u:p@a:1",), "bearer_token": "t"}, "Bearer t"),
        ({"urls": ("http://u:p@a:1",), "username": "v", "password": "q"}, basic("v:q")),
        ({"urls": ("http://u:p@a:1",), "cloud_id": "x"}, None),
    ],
)
def test_one_login_counts(options: dict[str, Any], expected: str | None) -> None:
    """That of the settings before that of a URL; space around a key or token is none of it."""
    assert sink_module.authorization(Connection(**options)) == expected


def test_a_login_in_a_url_is_for_all_nodes_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Percent signs are undone; an error names the node and nothing else of the URL, and no log has it."""
    caplog.set_level(logging.DEBUG)

    async def fail(cluster: HttpCluster, url: str, word: str) -> None:
        sink = ElasticsearchClient(Connection(urls=(url,)))
        with pytest.raises(SinkError) as caught:
            await sink.bulk("/_bulk", ITEM)
        await sink.close()
        assert word in str(caught.value)
        assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r}"

    async def scenario() -> None:
        async with running(2) as cluster:
            first, second = (url.removeprefix("http://") for url in cluster.urls)
            sink = ElasticsearchClient(connection(URL=f"http://{IN_URL}@{first},http://{second}"))
            for _ in range(2):
                await sink.bulk("/_bulk", ITEM)
            await sink.close()
            assert cluster.served == [1, 1]
            assert {request.headers["authorization"] for request in cluster.requests} == {basic(f"elastic:{PASSWORD}")}
            cluster.script.append(Act(answer=b"nonsense\r\n\r\n", end="close"))
            await fail(cluster, f"http://{IN_URL}@{first}", "not valid HTTP")
            await cluster.down(0)
            await fail(cluster, f"http://{IN_URL}@{first}", first)

    asyncio.run(scenario())
    made = Connection(urls=(f"http://{IN_URL}@x:1",), password=PASSWORD, api_key=PASSWORD, bearer_token=PASSWORD)
    assert "s3cret" not in f"{made!r} {made} {caplog.text}"


def test_different_logins_in_urls_are_refused() -> None:
    """One of them would be used for all nodes, and nobody would know which."""
    with pytest.raises(ConfigError, match="different logins") as caught:
        ElasticsearchClient(
            Connection(urls=("http://a:secret1@127.0.0.1:1", "http://c:3", "http://b:secret2@127.0.0.1:2"))
        )
    assert "secret" not in str(caught.value)


def test_a_cloud_id_names_the_node() -> None:
    """It wins over the URLs, whose default is always there; one that is none is refused."""
    inner = base64.b64encode(b"eu-west-1.aws.example.io$abc123$kibana").decode()
    (node,) = sink_module.nodes(connection(CLOUD_ID=f"name:{inner}"))
    assert (node.scheme, node.host, node.port) == ("https", "abc123.eu-west-1.aws.example.io", 443)
    assert node.ssl_context is not None
    inner = base64.b64encode(b"example.io:9243$abc123$").decode()
    (node,) = sink_module.nodes(Connection(cloud_id=f"name:{inner}"))
    assert (node.scheme, node.host, node.port) == ("https", "abc123.example.io", 9243)
    for wrong in ("name:???", "name", "", f"name:{base64.b64encode(b'example.io$').decode()}"):
        with pytest.raises(ConfigError, match="cloud id"):
            ElasticsearchClient(Connection(cloud_id=wrong))


def test_each_node_is_named_once_as_its_url_says() -> None:
    """Scheme, host, port and path; without a port that of the scheme, and TLS only where it is asked for."""
    urls = ("http://a:9200", "http://u:p@a:9200/", "https://b", "http://c/es/", "https://[::1]:9243/x%2Fy/")
    found = sink_module.nodes(Connection(urls=urls))
    assert [(node.scheme, node.host, node.port, node.path_prefix) for node in found] == [
        ("http", "a", 9200, ""),
        ("https", "b", 443, ""),
        ("http", "c", 80, "/es"),
        ("https", "::1", 9243, "/x%2Fy"),
    ]
    assert [node.ssl_context is not None for node in found] == [False, True, False, True]


def test_settings_reach_the_connection_each_to_its_own_place() -> None:
    """No two of them are alike, so none can be taken for another."""
    loaded, _ = load_without_required(
        {
            "SIDECAR_BULK_TIMEOUT": "17s",
            "SIDECAR_BULK_COMPRESS": "true",
            "SIDECAR_ELASTICSEARCH_URL": "http://a:1,http://b:2",
        }
    )
    made = elasticsearch(loaded)
    assert (made.urls, made.timeout_seconds, made.compress, made.tls) == (
        ("http://a:1", "http://b:2"),
        17.0,
        True,
        None,
    )
    assert elasticsearch(load_without_required({"SIDECAR_BULK_COMPRESS": "false"})[0]).compress is False
