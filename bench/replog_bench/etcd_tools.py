"""What the comparison with etcd needs from the system, and the load that is compiled for it.

The load is a Go program in ``etcd_load``, built from the sources that Debian ships, without a
network and without a module: ``GO111MODULE=off`` and ``GOPATH=/usr/share/gocode``.  The build takes
half a minute to a minute, so what it gives is kept in the user's cache directory, under a name made
of all that it depends on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replog.errors import ReplogError

SOURCE: Final = Path(__file__).parent / "etcd_load" / "main.go"

GOPATH: Final = Path("/usr/share/gocode")
"""Where Debian's packages put Go sources."""

CLIENT_PATH: Final = "src/go.etcd.io/etcd/clientv3"
"""Of etcd's own client, below :data:`GOPATH`."""

BUILD_SECONDS: Final = 600.0


class BuildFailed(ReplogError):
    """The load for etcd could not be compiled."""


class NothingToCompare(ReplogError):
    """Neither etcd nor an engine was there to be measured."""


@dataclass(frozen=True, slots=True)
class EtcdTools:
    """What was found."""

    server: str
    """The program ``etcd``."""
    compiler: str
    """The program ``go``."""
    gopath: Path


def missing_packages(gopath: Path = GOPATH) -> list[str]:
    """Debian's names of the packages that are not installed here."""
    return [
        package
        for package, is_there in (
            ("etcd-server", shutil.which("etcd")),
            ("golang-go", shutil.which("go")),
            ("golang-etcd-server-dev", (gopath / CLIENT_PATH).is_dir()),
        )
        if not is_there
    ]


def find_tools(gopath: Path = GOPATH) -> EtcdTools | None:
    """Everything that the comparison needs; ``None`` when something is missing."""
    server, compiler = shutil.which("etcd"), shutil.which("go")
    if server is None or compiler is None or missing_packages(gopath):
        return None
    return EtcdTools(server, compiler, gopath)


def missing_sentence(packages: list[str]) -> str:
    """What to do where ``packages`` are missing."""
    return (
        "the rows of etcd are left out, for it or what compiles its load is not installed: "
        f"apt-get install --no-install-recommends {' '.join(packages)}"
    )


def server_version(tools: EtcdTools) -> str:
    """What etcd says that it is, as in ``etcd 3.4.23``."""
    return f"etcd {_output([tools.server, '--version']).splitlines()[0].split()[-1]}"


def build_load(tools: EtcdTools, progress: Callable[[str], None]) -> Path:
    """The compiled load, from the cache if it is there already."""
    compiler = _output([tools.compiler, "version"])
    depends_on = f"{SOURCE.read_text(encoding='utf-8')}\0{compiler}\0{tools.gopath}"
    cache = cache_directory()
    program = cache / f"etcd-load-{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}"
    if program.exists():
        return program
    progress("compiling the load for etcd; this takes up to a minute, and is done once")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix="building-", dir=cache)
    except OSError as error:
        raise BuildFailed(
            f"{cache} cannot be written ({error.strerror or error}); "
            "name another place for caches in XDG_CACHE_HOME"
        ) from error
    with made as directory:
        _compile(tools, Path(directory))
        # In one step, so that nobody finds half a program.
        os.replace(Path(directory) / "etcd-load", program)
    return program


def cache_directory() -> Path:
    """Where the compiled load is kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache).absolute() / "replog-bench"


def _compile(tools: EtcdTools, directory: Path) -> None:
    """Compile the load; all that the compiler writes goes below ``directory``."""
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOPATH": str(tools.gopath),
        "GOCACHE": str(directory / "cache"),
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    try:
        done = subprocess.run(
            [tools.compiler, "build", "-o", str(directory / "etcd-load"), str(SOURCE)],
            env=environment,
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"the load for etcd was not compiled after {BUILD_SECONDS:g} s") from None
    if done.returncode:
        words = " / ".join(done.stderr.strip().splitlines()[-5:])
        raise BuildFailed(f"the load for etcd cannot be compiled: {words}")


def _output(command: list[str]) -> str:
    """What a program prints; raises :class:`BuildFailed` where it cannot be run."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildFailed(f"{command[0]} cannot be run: {error}") from error
