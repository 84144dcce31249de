"""What is built and shipped: the wheel's content, the sdist, and an installation from them."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"replog"} | {
    init.parent.name
    for folder in ("engines", "statemachines", "bench")
    for init in (ROOT / folder).glob("*/__init__.py")
}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Built:
    """The files of one build."""

    wheel: Path
    """From the checkout."""
    sdist: Path
    wheel_of_sdist: Path


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel of the checkout, the sdist of the checkout, and the wheel of that sdist."""
    direct = tmp_path_factory.mktemp("direct")
    through = tmp_path_factory.mktemp("through")
    build = (sys.executable, "-m", "build", "--no-isolation")
    _run(*build, "--wheel", "--outdir", direct, ROOT)
    # Without a format, the wheel is built from the sdist.
    _run(*build, "--outdir", through, ROOT)
    [wheel], [sdist] = direct.glob("*.whl"), through.glob("*.tar.gz")
    [wheel_of_sdist] = through.glob("*.whl")
    return Built(wheel, sdist, wheel_of_sdist)


def _content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_build_wheel_squats_no_name(built: Built) -> None:
    """The wheel puts only names that begin with ``replog`` into site-packages."""
    tops = {name.partition("/")[0] for name in _content(built.wheel)}
    [metadata] = [top for top in tops if top.endswith(".dist-info")]
    assert tops - {metadata} == PACKAGES
    assert all(top.startswith("replog") for top in tops)


def test_build_wheel_typed(built: Built) -> None:
    """Every package in the wheel carries ``py.typed``, and no test or cache comes along."""
    names = set(_content(built.wheel))
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]


def test_build_wheel_from_sdist_same(built: Built) -> None:
    """The sdist builds a wheel of the same content, byte for byte."""
    assert _content(built.wheel_of_sdist) == _content(built.wheel)


def test_build_sdist_complete(built: Built) -> None:
    """The sdist carries what one needs to check the release: tests, docs, licence, Makefile."""
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml"):
        assert name in names
    assert {"tests/run_parts.py", "docs/glossary.md"} <= names


def test_install_wheel_works(built: Built, tmp_path: Path) -> None:
    """An installation from the wheel, away from the checkout, has every package and the command.

    The dependencies are lent by the environment that runs the tests, so that no network is needed;
    the checkout is not among them.
    """
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--python", python, "install", "--no-deps", "--no-index", built.wheel)
    [site] = home.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    script = (
        f"import sys, importlib; sys.path.remove('') if '' in sys.path else None\n"
        f"for name in {sorted(PACKAGES)!r}:\n"
        f"    assert importlib.import_module(name).__file__.startswith({str(site)!r}), name\n"
        f"import replog; print(replog.__version__)"
    )
    version = _run(python, "-c", script).strip()
    assert f"-{version}-" in built.wheel.name
    assert (home / "bin" / "replog").exists()
