"""From settings to what the parts want, where more than one command needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.amqp.topology import Topology
from sidecar.amqp.wire import Reach
from sidecar.tls import client_context

if TYPE_CHECKING:
    from pydantic import SecretStr

    from sidecar.elastic.sink import Connection
    from sidecar.settings import AmqpSettings, Settings


def topology(settings: AmqpSettings) -> Topology:
    """Return what to declare on the broker."""
    return Topology(
        queues=settings.amqp_queue,
        declare=settings.amqp_declare == "missing",
        queue_type=settings.amqp_queue_type,
        queue_arguments=settings.amqp_queue_arguments,
        exchange=settings.amqp_exchange,
        exchange_type=settings.amqp_exchange_type,
        routing_keys=settings.amqp_routing_keys,
        binding_arguments=settings.amqp_binding_arguments,
        dead_letter_exchange=settings.dead_letter_exchange,
        dead_letter_routing_key=settings.dead_letter_routing_key,
    )


def reach(settings: AmqpSettings) -> Reach:
    """Return how to reach RabbitMQ, but for its URLs.

    Raises:
        ConfigError: a file for TLS can't be used.
    """
    files = (settings.amqp_ca_file, settings.amqp_cert_file, settings.amqp_key_file)
    if not any(files):
        return Reach()
    ca_file, cert_file, key_file = files
    context = client_context(prefix="SIDECAR_AMQP", ca_file=ca_file, cert_file=cert_file, key_file=key_file)
    return Reach(tls=context, client_certificate=cert_file is not None)


def elasticsearch(settings: Settings) -> Connection:
    """Return how to reach Elasticsearch.

    Raises:
        ConfigError: a file for TLS can't be used, or the fingerprint is none.
    """
    from sidecar.elastic.sink import Connection  # its client takes long to load, and not every command needs it

    given = (
        settings.elasticsearch_ca_file,
        settings.elasticsearch_cert_file,
        settings.elasticsearch_key_file,
        settings.elasticsearch_fingerprint,
    )
    ca_file, cert_file, key_file, fingerprint = given
    context = client_context(
        prefix="SIDECAR_ELASTICSEARCH",
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        fingerprint=fingerprint,
    )
    return Connection(
        urls=tuple(url.get_secret_value() for url in settings.elasticsearch_url),
        username=settings.elasticsearch_username,
        password=_secret(settings.elasticsearch_password),
        api_key=_secret(settings.elasticsearch_api_key),
        bearer_token=_secret(settings.elasticsearch_bearer_token),
        cloud_id=settings.elasticsearch_cloud_id,
        tls=context if any(given) else None,
        timeout_seconds=settings.bulk_timeout,
        compress=settings.bulk_compress,
    )


def _secret(value: SecretStr | None) -> str | None:
    return None if value is None else value.get_secret_value()
