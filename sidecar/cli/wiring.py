"""From settings to what the parts want, where more than one command needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.tls import client_context

if TYPE_CHECKING:
    from pydantic import SecretStr

    from sidecar.config.settings import Settings
    from sidecar.elasticsearch.client import Connection


def elasticsearch(settings: Settings) -> Connection:
    """Return how to reach Elasticsearch.

    Raises:
        ConfigError: a file for TLS can't be used, or the fingerprint is none.
    """
    from sidecar.elasticsearch.client import Connection  # its client takes long to load, and not every command needs it

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
