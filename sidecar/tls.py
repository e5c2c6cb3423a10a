"""TLS towards either server: one context out of files and a fingerprint, and what went wrong with it in a sentence."""

from __future__ import annotations

import hmac
import re
import ssl
from hashlib import sha256
from pathlib import Path

from sidecar.errors import ConfigError

File = str | Path

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST"})
_WHY_CLOSED = " (does it demand a client certificate, or speak only a TLS older than 1.2?)"
_WHERE_IN_OPENSSL = re.compile(r"\s*\(_ssl\.c:\d+\)$")


def client_context(
    *,
    prefix: str,
    ca_file: File | None = None,
    cert_file: File | None = None,
    key_file: File | None = None,
    fingerprint: str | None = None,
) -> ssl.SSLContext:
    """Return how to speak TLS with a server.

    Args:
        prefix: of the settings' names, for errors (``SIDECAR_AMQP``).
        ca_file: PEM file of the authorities that are trusted instead of the system's.
        cert_file: PEM file of our own certificate, with its chain.
        key_file: PEM file of its key, where `cert_file` doesn't hold it as well.
        fingerprint: SHA-256 of the server's certificate in hexadecimal, with or without colons. It is enough by itself
            then: neither name nor authority is looked at, but a `ca_file` that is given counts as well.

    Raises:
        ConfigError: a file can't be read or isn't what it should be, or the fingerprint is none.
    """
    problems: list[str] = []
    context = _trusting(ca_file, f"{prefix}_CA_FILE", problems)
    if fingerprint is not None:
        digits = fingerprint.replace(":", "").strip().lower()
        if not _SHA256_HEX.fullmatch(digits):
            problems.append(f"{prefix}_FINGERPRINT must be the SHA-256 of a certificate: 64 hexadecimal digits")
        context.check_hostname = False
        if ca_file is None:
            context.verify_mode = ssl.CERT_NONE
        context.sslobject_class = _pinned(digits)
    _identify(context, cert_file, key_file, prefix, problems)
    if problems:
        raise ConfigError(problems)
    return context


def explain(error: Exception) -> str:
    """Return what is wrong with a TLS handshake, as people say it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        detail = getattr(error, "verify_message", None) or error.args[-1]
        return f"the server's certificate is not trusted: {detail}"
    if isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
        return "no TLS connection: the port doesn't speak TLS (is the scheme of the URL right?)"
    if isinstance(error, ssl.SSLError):
        text = str(error.args[-1]) if error.args else type(error).__name__
        return f"no TLS connection: {_WHERE_IN_OPENSSL.sub('', text)}"
    if isinstance(error, ConnectionResetError) and not error.args:  # asyncio's, which knows no more
        return f"no TLS connection: the server closed it during the handshake{_WHY_CLOSED}"
    return str(error)


def _trusting(ca_file: File | None, name: str, problems: list[str]) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        problems.append(f"{name} ({ca_file}): {_fault(error, 'holds no certificate in PEM format')}")
        return ssl.create_default_context()


def _identify(
    context: ssl.SSLContext, cert_file: File | None, key_file: File | None, prefix: str, problems: list[str]
) -> None:
    if cert_file is None:
        if key_file is not None:
            problems.append(f"{prefix}_KEY_FILE is given without {prefix}_CERT_FILE")
        return
    for name, file in ((f"{prefix}_CERT_FILE", cert_file), (f"{prefix}_KEY_FILE", key_file)):
        try:
            if file is not None:
                Path(file).open("rb").close()
        except OSError as error:
            problems.append(f"{name} ({file}): {error.strerror}")
            return
    try:
        # Never ask for a passphrase on a terminal: a service has none.
        context.load_cert_chain(cert_file, key_file, password=_no_passphrase)
    except OSError as error:
        what = "certificate and key are not in PEM format, are not a pair, or the key is encrypted"
        problems.append(f"{prefix}_CERT_FILE ({cert_file}): {_fault(error, what)}")


def _no_passphrase() -> str:
    return ""


def _fault(error: OSError, not_ours: str) -> str:
    return not_ours if isinstance(error, ssl.SSLError) else error.strerror or str(error)


def _pinned(digits: str) -> type[ssl.SSLObject]:
    """Return a class of TLS connections that end their handshake by looking at the certificate's SHA-256.

    It is done here because aiohttp, given a fingerprint, forgets the client certificate.
    """

    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            found = sha256(self.getpeercert(binary_form=True) or b"").hexdigest()
            if not hmac.compare_digest(found, digits):
                raise ssl.SSLCertVerificationError(1, f"its SHA-256 is {found}, not the given fingerprint")

    return Pinned
