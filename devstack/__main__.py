"""``python -m devstack provision|up``: get the real servers, or run both until Ctrl-C.

``provision`` installs no servers where a Docker engine answers: they come in containers there. It also gets a browser
and Prometheus for the tests, where it may.
"""

from __future__ import annotations

import signal
import sys

from devstack.compose import engine_answers
from devstack.elasticsearch import Elasticsearch
from devstack.errors import StackError
from devstack.processes import watch_exit
from devstack.provision import provision, provision_browser, provision_prometheus
from devstack.rabbitmq import RabbitMQ

USAGE = "usage: python -m devstack provision|up"


def main(arguments: list[str]) -> int:
    """Run a command and return the exit status."""
    if arguments not in (["provision"], ["up"]):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        if arguments == ["up"]:
            provision()
            _up()
            return 0
        if engine_answers():
            print("A Docker engine answers: RabbitMQ and Elasticsearch will run in containers.")
        else:
            provision()
        provision_browser()
        provision_prometheus()
    except StackError as error:
        print(f"devstack: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _up() -> None:
    watch_exit()
    with RabbitMQ() as rabbitmq, Elasticsearch() as elasticsearch:
        print(f"SIDECAR_AMQP_URL={rabbitmq.amqp_url}\nSIDECAR_ELASTICSEARCH_URL={elasticsearch.url}", flush=True)
        signal.pause()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
