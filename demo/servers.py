"""The two real servers: by Docker Compose where an engine answers, otherwise as native processes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from devstack import compose, provision
from devstack.elasticsearch import Elasticsearch
from devstack.errors import StackError
from devstack.rabbitmq import RabbitMQ

if TYPE_CHECKING:
    from collections.abc import Callable

    from devstack.processes import Node


class Servers:
    """RabbitMQ and Elasticsearch, both running.

    Args:
        say: gets what happens, in words, for it may take a while on a fresh machine.

    Attributes:
        amqp_url: of RabbitMQ.
        elasticsearch_url: of Elasticsearch.
        how: in words.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.amqp_url = ""
        self.elasticsearch_url = ""
        self.how = ""
        self._say = say
        self._nodes: list[Node] = []
        self._failures: list[Exception] = []

    def start(self) -> None:
        """Get what is missing, and start both.

        Raises:
            StackError: one of them can't be had; the text says why and what to do.
        """
        if compose.available():
            self._start_composed()
            return
        provision.provision(self._say)
        self._say("starting RabbitMQ and Elasticsearch, natively")
        rabbitmq, elasticsearch = RabbitMQ(), Elasticsearch()
        self._nodes = [rabbitmq, elasticsearch]
        self._together(rabbitmq.start, elasticsearch.start)
        self.amqp_url, self.elasticsearch_url = rabbitmq.amqp_url, elasticsearch.url
        self.how = f"natively, Elasticsearch {elasticsearch.version}"

    def _start_composed(self) -> None:
        self._say("starting RabbitMQ and Elasticsearch by Docker Compose; the first time takes a download")
        stack = compose.ComposedServers()
        self._nodes = [stack]
        stack.start()
        self.amqp_url, self.elasticsearch_url = stack.amqp_url, stack.elasticsearch_url
        self.how = "by Docker Compose"

    def _together(self, *starts: Callable[[], object]) -> None:
        """Start all at once, each in a thread: it is mostly waiting."""
        threads = [threading.Thread(target=self._attempt, args=(start,)) for start in starts]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._close_nodes()  # whoever waits for one of them gives up now
            for thread in threads:
                thread.join()
            raise
        if self._failures:
            raise self._failures[0]

    def _attempt(self, start: Callable[[], object]) -> None:
        try:
            start()
        except (StackError, OSError) as error:
            self._failures.append(error)

    def close(self) -> None:
        """End both, and remove their folders."""
        self._close_nodes()
        self._nodes.clear()

    def _close_nodes(self) -> None:
        for node in self._nodes:
            node.close()
