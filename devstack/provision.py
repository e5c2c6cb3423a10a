"""Makes the servers present: RabbitMQ and a JDK by apt, Elasticsearch's zip by Maven; browser and Prometheus for tests.

`find_rabbitmq` and `find_elasticsearch` only look; `provision` installs what they don't find. Everything is kept: a
second run finds all of it in well under a second.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devstack.errors import StackError
from devstack.processes import others_can_enter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ELASTICSEARCH_VERSION = "9.5.0"
ELASTICSEARCH_JAVA = 21
# For a distribution that has no newer JDK.
FALLBACK_ELASTICSEARCH_VERSION = "8.19.21"
FALLBACK_ELASTICSEARCH_JAVA = 17

INSTALL_SECONDS = 1800.0
JAVA_SECONDS = 20.0

_ARTIFACT = "org.elasticsearch.distribution.integ-test-zip:elasticsearch"
_JDK_PACKAGES = ("openjdk-25-jre-headless", "openjdk-21-jre-headless")
_FALLBACK_JDK_PACKAGE = "openjdk-17-jre-headless"
_REPOSITORY = Path(__file__).resolve().parent.parent
_CACHE_NAME = "sidecar-servers"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Debian's layout first: the commands on its PATH are wrappers that become the user of the machine's own broker.
_RABBITMQ_FOLDERS = ("/usr/lib/rabbitmq/bin",)
_ERLANG_FOLDERS = ("/usr/lib/erlang/bin", "/usr/local/lib/erlang/bin")


@dataclass(frozen=True, slots=True)
class RabbitMQTools:
    """Paths of the programs of an installed RabbitMQ."""

    server: Path
    control: Path
    epmd: Path


@dataclass(frozen=True, slots=True)
class PrometheusTools:
    """Paths of the programs of Prometheus."""

    server: Path
    tool: Path


@dataclass(frozen=True, slots=True)
class ElasticsearchInstall:
    """An unpacked Elasticsearch and a JDK that runs it."""

    home: Path
    java_home: Path
    version: str


@dataclass(frozen=True, slots=True)
class Jdk:
    """An installed Java and its major version."""

    home: Path
    major: int


def say_progress(text: str) -> None:
    """Print a line at once, also where the output is a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def provision(say: Callable[[str], None] = say_progress) -> tuple[RabbitMQTools, ElasticsearchInstall]:
    """Install what is missing of both servers.

    Args:
        say: Is told in a line what is about to be installed.

    Raises:
        StackError: something is missing and can't be installed; the text says what to do.
    """
    return provision_rabbitmq(say), provision_elasticsearch(say)


def provision_rabbitmq(say: Callable[[str], None] = say_progress) -> RabbitMQTools:
    """Return RabbitMQ's programs, after installing them where they are missing.

    Raises:
        StackError: they can't be installed.
    """
    if find_rabbitmq() is None:
        say("Installing rabbitmq-server ...")
        _apt_install("rabbitmq-server", why="RabbitMQ is not installed")
    return require_rabbitmq()


def provision_elasticsearch(say: Callable[[str], None] = say_progress) -> ElasticsearchInstall:
    """Return an unpacked Elasticsearch with its JDK, after getting what is missing of them.

    Raises:
        StackError: no JDK, no Maven or no archive is to be had.
    """
    jdk = _provision_jdk(say)
    version = _version_for(jdk)
    if not _unpacked(version):
        archive_folder = Path(tempfile.mkdtemp(prefix="elasticsearch-zip-", dir=cache_folder()))
        try:
            say(f"Getting Elasticsearch {version} by Maven ...")
            _unpack(_download(version, archive_folder, jdk, say), version)
        finally:
            shutil.rmtree(archive_folder, ignore_errors=True)
    return require_elasticsearch()


def provision_browser(say: Callable[[str], None] = say_progress) -> None:
    """Install Chromium where it is missing and apt has it: a test looks at the status page, and is skipped without.

    Nothing else needs one, so it is no failure where it can't be had.
    """
    if find_browser() is not None or not _apt_usable():
        return
    say("Installing chromium ...")
    try:
        _apt_install("chromium", why="no browser is installed")
    except StackError as error:
        say(f"Going on without a browser: {str(error).splitlines()[0]}")


def provision_prometheus(say: Callable[[str], None] = say_progress) -> None:
    """Unpack Prometheus where it is missing and apt has it: tests run the alerts and are skipped without.

    Debian's package isn't installed but unpacked into the cache: installed it would be a service of the machine, and
    bring the libraries of a web page that nobody looks at. It takes seconds (20 MB), and needs no root.
    """
    if find_prometheus() is not None or shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return
    say("Getting prometheus ...")
    folder = Path(tempfile.mkdtemp(prefix="prometheus-package-", dir=cache_folder()))
    try:
        if _privileged() is not None:
            _apt_update()
        # Not in a sandbox, as which apt would become a user who can't write into this folder.
        options = ["-q", "-o", "APT::Sandbox::User=root"]
        _run(["apt-get", "download", *options, "prometheus"], what="apt-get download prometheus", folder=folder)
        (package,) = folder.glob("prometheus_*.deb")
        _run(["dpkg-deb", "--extract", str(package), str(folder / "unpacked")], what="dpkg-deb")
        (folder / "unpacked").rename(_prometheus_folder())
    except (StackError, OSError, ValueError) as error:
        if find_prometheus() is None:  # another process may have been faster, which is as good
            say(f"Going on without Prometheus: {str(error).splitlines()[0]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find_prometheus() -> PrometheusTools | None:
    """Return Prometheus' programs if they are there."""
    folders = (str(_prometheus_folder() / "usr" / "bin"),)
    server, tool = _find_program("prometheus", folders), _find_program("promtool", folders)
    return None if server is None or tool is None else PrometheusTools(server, tool)


def _prometheus_folder() -> Path:
    return cache_folder() / "prometheus"


def find_browser() -> Path | None:
    """Return Chromium's program if it is installed."""
    return next((found for name in _BROWSERS if (found := _find_program(name, ())) is not None), None)


def find_rabbitmq() -> RabbitMQTools | None:
    """Return RabbitMQ's programs if they are installed."""
    server = _find_program("rabbitmq-server", _RABBITMQ_FOLDERS)
    control = _find_program("rabbitmqctl", _RABBITMQ_FOLDERS)
    epmd = _find_program("epmd", _ERLANG_FOLDERS)
    if server is None or control is None or epmd is None:
        return None
    return RabbitMQTools(server=server, control=control, epmd=epmd)


def require_rabbitmq() -> RabbitMQTools:
    """Return RabbitMQ's programs.

    Raises:
        StackError: they aren't installed.
    """
    tools = find_rabbitmq()
    if tools is None:
        message = "RabbitMQ is not installed: run 'make provision', or install rabbitmq-server by hand."
        raise StackError(message)
    return tools


def find_elasticsearch() -> ElasticsearchInstall | None:
    """Return an unpacked Elasticsearch with a JDK that runs it, if both are there."""
    jdk = _best_jdk()
    if jdk is None or jdk.major < FALLBACK_ELASTICSEARCH_JAVA:
        return None
    version = _version_for(jdk)
    if not _unpacked(version):
        return None
    return ElasticsearchInstall(home=_home_of(version), java_home=jdk.home, version=version)


def require_elasticsearch() -> ElasticsearchInstall:
    """Return an unpacked Elasticsearch with a JDK that runs it.

    Raises:
        StackError: one of them isn't there.
    """
    install = find_elasticsearch()
    if install is None:
        message = "Elasticsearch, or a JDK for it, is not there: run 'make provision'."
        raise StackError(message)
    return install


def cache_folder() -> Path:
    """Return the folder that keeps unpacked servers: one that the servers' user can enter.

    Raises:
        StackError: the folder belongs to another user.
    """
    inside = _REPOSITORY / ".servers"
    if os.geteuid() != 0 or others_can_enter(_REPOSITORY):
        inside.mkdir(exist_ok=True)
        return inside
    # A checkout in root's home: nobody but root gets in there, and Elasticsearch refuses to be root.
    outside = _outside_cache_folder()
    outside.mkdir(mode=0o755, exist_ok=True)
    if outside.is_symlink() or outside.stat().st_uid != os.geteuid():
        message = f"{outside} belongs to another user: remove it, or move this checkout to a folder that all can enter."
        raise StackError(message)
    return outside


def _outside_cache_folder() -> Path:
    base = Path("/var/tmp")
    return (base if base.is_dir() else Path(tempfile.gettempdir())) / f"{_CACHE_NAME}-{os.geteuid()}"


def find_jdks() -> Iterator[Jdk]:
    """Yield the JDKs of JAVA_HOME, the system's folder and PATH that the servers' user can run."""
    seen: set[Path] = set()
    for candidate in _java_homes():
        home = candidate.resolve()
        if home in seen or not (home / "bin" / "java").is_file():
            continue
        seen.add(home)
        if os.geteuid() == 0 and not others_can_enter(home):
            continue
        major = _java_major(home / "bin" / "java")
        if major is not None:
            yield Jdk(home, major)


def _java_homes() -> Iterator[Path]:
    if os.environ.get("JAVA_HOME"):
        yield Path(os.environ["JAVA_HOME"])
    system = Path("/usr/lib/jvm")
    if system.is_dir():
        yield from sorted(system.iterdir())
    program = shutil.which("java")
    if program is not None:
        yield Path(program).resolve().parent.parent


def _java_major(program: Path) -> int | None:
    """Return the major version that a Java says it has, or None if it doesn't run."""
    try:
        done = subprocess.run(
            [str(program), "-version"], capture_output=True, text=True, timeout=JAVA_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # 'openjdk version "21.0.4" ...' on stderr; before Java 9 it was "1.8.0".
    match = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(match[1]) if match is not None else None


def _best_jdk() -> Jdk | None:
    """Return the first JDK that runs the newer Elasticsearch, otherwise the newest there is."""
    best: Jdk | None = None
    for jdk in find_jdks():
        if jdk.major >= ELASTICSEARCH_JAVA:
            return jdk
        if best is None or jdk.major > best.major:
            best = jdk
    return best


def _version_for(jdk: Jdk) -> str:
    return ELASTICSEARCH_VERSION if jdk.major >= ELASTICSEARCH_JAVA else FALLBACK_ELASTICSEARCH_VERSION


def _home_of(version: str) -> Path:
    return cache_folder() / f"elasticsearch-{version}"


def _unpacked(version: str) -> bool:
    return (_home_of(version) / "bin" / "elasticsearch").is_file()


def _provision_jdk(say: Callable[[str], None]) -> Jdk:
    """Return a JDK, after installing the best that the distribution has where there is none for the newer version."""
    jdk = _best_jdk()
    if jdk is not None and (jdk.major >= ELASTICSEARCH_JAVA or _unpacked(_version_for(jdk))):
        return jdk
    old_is_enough = jdk is not None and jdk.major >= FALLBACK_ELASTICSEARCH_JAVA
    package = _jdk_package(fallback=not old_is_enough)
    if package is not None:
        say(f"Installing {package} ...")
        _apt_install(package, why=f"no Java {ELASTICSEARCH_JAVA} or newer is installed")
        jdk = _best_jdk()
    if jdk is None or jdk.major < FALLBACK_ELASTICSEARCH_JAVA:
        message = (
            f"No Java {ELASTICSEARCH_JAVA} or newer was found (JAVA_HOME, /usr/lib/jvm, PATH), and none can be"
            " installed here: install a JDK, and set JAVA_HOME."
        )
        raise StackError(message)
    return jdk


def _jdk_package(*, fallback: bool) -> str | None:
    """Return the package to install, or None where what is there must do."""
    if not _apt_usable():
        return None
    _apt_update()
    for package in _JDK_PACKAGES:
        if _apt_has(package):
            return package
    return _FALLBACK_JDK_PACKAGE if fallback else None


def _find_program(name: str, folders: Sequence[str]) -> Path | None:
    for folder in folders:
        program = Path(folder) / name
        if program.is_file():
            return program
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
    found = shutil.which(name, path=path)
    return None if found is None else Path(found)


# -- apt -----------------------------------------------------------------------------------------------------------


def _privileged() -> list[str] | None:
    """Return what has to stand before a command to run it as root, or None where we can't be root."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    asked = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
    return ["sudo", "-n"] if asked.returncode == 0 else None


def _apt_usable() -> bool:
    return shutil.which("apt-get") is not None and _privileged() is not None


def _apt_has(package: str) -> bool:
    policy = subprocess.run(
        ["apt-cache", "policy", package],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    return re.search(r"Candidate: (?!\(none\))", policy.stdout) is not None


def _apt_update() -> None:
    """Fetch the package lists; a stale list would name packages that are gone."""
    _run([*(_privileged() or []), "apt-get", "update", "-q"], what="apt-get update")


def _apt_install(package: str, *, why: str) -> None:
    """Install a Debian package.

    Raises:
        StackError: there is no apt, we may not use it, or it fails.
    """
    if shutil.which("apt-get") is None:
        message = f"{why}, and this system has no apt-get: install {package}, or what it is called here, by hand."
        raise StackError(message)
    if _privileged() is None:
        message = f"{why}, and installing it needs root: run 'sudo apt-get install {package}', then try again."
        raise StackError(message)
    _apt_update()
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", "--no-install-recommends"]
    _run([*(_privileged() or []), *command, package], what=f"apt-get install {package}")


# -- Maven ---------------------------------------------------------------------------------------------------------


def _download(version: str, folder: Path, jdk: Jdk, say: Callable[[str], None]) -> Path:
    """Have Maven put the distribution's zip into a folder; it keeps a copy in its own local repository.

    Raises:
        StackError: Maven can't be installed or doesn't find it.
    """
    if shutil.which("mvn") is None:
        say("Installing maven ...")
        _apt_install("maven", why="Maven, which gets Elasticsearch, is not installed")
    environment = dict(os.environ)
    if shutil.which("java") is None:
        environment["JAVA_HOME"] = str(jdk.home)
    command = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={_ARTIFACT}:{version}:zip"]
    _run([*command, f"-DoutputDirectory={folder}"], what="Maven", folder=folder, environment=environment)
    archives = list(folder.glob("*.zip"))
    if not archives:
        message = f"Maven ended well, but left no archive of Elasticsearch {version}."
        raise StackError(message)
    return archives[0]


def _unpack(archive: Path, version: str) -> None:
    """Unpack the distribution beside its final place and move it there in one step."""
    scratch = archive.parent / "unpacked"
    with zipfile.ZipFile(archive) as bundle:
        for entry in bundle.infolist():
            path = Path(bundle.extract(entry, scratch))
            # The archive knows which files are programs; everybody may read all of it, whatever the umask.
            runs = entry.is_dir() or (entry.external_attr >> 16) & 0o100
            path.chmod(0o755 if runs else 0o644)
    top = next(scratch.iterdir())
    top.chmod(0o755)
    try:
        top.rename(_home_of(version))
    except OSError as error:
        # Another process may have been faster, which is as good.
        if not _unpacked(version):
            message = f"Elasticsearch can't be put into {_home_of(version)}: {error}"
            raise StackError(message) from error


def _run(
    command: Sequence[str], *, what: str, folder: Path | None = None, environment: dict[str, str] | None = None
) -> None:
    """Run an installer.

    Raises:
        StackError: it failed; the end of what it said is quoted.
    """
    try:
        done = subprocess.run(
            list(command),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=INSTALL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        message = f"{what} can't be run: {error}"
        raise StackError(message) from error
    if done.returncode != 0:
        tail = "\n".join(f"    {line}" for line in done.stdout.strip().splitlines()[-12:])
        message = f"{what} failed with exit status {done.returncode}:\n{tail}"
        raise StackError(message)
