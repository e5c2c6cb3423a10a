"""Authorities and certificates for tests with TLS, made by the command `openssl`: right ones, and wrong in one way."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

THIS_MACHINE = "IP:127.0.0.1,DNS:localhost"
VALID = ("20200101000000Z", "21000101000000Z")
EXPIRED = ("20200101000000Z", "20210101000000Z")
NOT_YET_VALID = ("20990101000000Z", "21000101000000Z")
PASSPHRASE = "l0ng-and-secret-passphrase"

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_CONFIGURATION = """
[req]
distinguished_name = subject
[subject]
[ca]
default_ca = authority
[authority]
database = index.txt
serial = serial
new_certs_dir = .
certificate = ca.crt
private_key = ca.key
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""


def require_openssl() -> None:
    """Skip the test if there is no `openssl`; fail it where CI must have it."""
    if shutil.which("openssl") is not None:
        return
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail("no openssl command", pytrace=False)
    pytest.skip("no openssl command")


def openssl(folder: Path, *arguments: str) -> str:
    """Run openssl in a folder and return what it printed."""
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Authority:
    """An authority in a folder of its own, and the certificates that it has signed.

    Args:
        folder: to be created.
        name: of the authority.
        parent: signs its certificate; None: the authority signs it itself.

    Attributes:
        folder: has ``ca.crt``, ``ca.key``, and ``NAME.crt`` and ``NAME.key`` of each certificate.
    """

    def __init__(self, folder: Path, name: str, parent: Authority | None = None) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "openssl.cnf").write_text(_CONFIGURATION)
        (folder / "index.txt").touch()
        if parent is None:
            # What openssl takes from its own configuration otherwise.
            extensions = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "subjectKeyIdentifier=hash")
            self._request(name, "ca.key", "ca.crt", "-x509", "-days", "3650", *extensions)
        else:
            parent._sign_key(self, "ca", name, "basicConstraints=critical,CA:TRUE", VALID)

    def sign(
        self,
        name: str,
        names: str = THIS_MACHINE,
        validity: tuple[str, str] = VALID,
        *,
        common_name: str | None = None,
    ) -> None:
        """Make ``NAME.key`` and ``NAME.crt``, for a server and for a client.

        Args:
            name: of the files; also of the owner, unless `common_name` is given.
            names: the addresses of the server (``subjectAltName``); empty for none.
            validity: from when to when.
            common_name: of the owner.
        """
        extensions = f"subjectAltName={names}" if names else "basicConstraints=CA:FALSE"
        self._sign_key(self, name, common_name or name, extensions, validity)

    def _sign_key(
        self, owner: Authority, name: str, common_name: str, extensions: str, validity: tuple[str, str]
    ) -> None:
        request = owner.folder / f"{name}.csr"
        owner._request(common_name, f"{name}.key", request.name)
        (self.folder / "extensions").write_text(f"{extensions}\n")
        start, end = validity
        out = owner.folder / f"{name}.crt"
        signing = ("-batch", "-notext", "-create_serial", "-startdate", start, "-enddate", end)
        files = ("-config", "openssl.cnf", "-extfile", "extensions", "-in", str(request), "-out", str(out))
        openssl(self.folder, "ca", *signing, *files)

    def _request(self, common_name: str, key: str, out: str, *options: str) -> None:
        subject = ("-subj", f"/CN={common_name}", "-config", "openssl.cnf")
        openssl(self.folder, "req", *_NEW_KEY, "-keyout", key, "-out", out, *subject, *options)

    def join(self, name: str, *parts: str) -> None:
        """Write a file that consists of others of the folder: a chain, or a certificate and its key."""
        (self.folder / name).write_text("".join(map(self.text, parts)))

    def lock(self, key: str, out: str) -> None:
        """Write a key that needs `PASSPHRASE`."""
        openssl(self.folder, "pkey", "-aes256", "-passout", f"pass:{PASSPHRASE}", "-in", key, "-out", out)

    def path(self, name: str) -> str:
        """Return where a file is."""
        return str(self.folder / name)

    def text(self, name: str) -> str:
        """Return a file's content."""
        return (self.folder / name).read_text()

    def fingerprint(self, name: str) -> str:
        """Return the SHA-256 of a certificate, as openssl prints it."""
        return openssl(self.folder, "x509", "-in", name, "-noout", "-fingerprint", "-sha256").partition("=")[2].strip()
