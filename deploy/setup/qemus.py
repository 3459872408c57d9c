"""Fetches further QEMUs from Debian beside the installed one, for the tests across versions.

Unpacks qemu-system-x86 with what it needs into .cache/qemu-VERSION/root; .cache/qemu-VERSION/bin/qemu-system-x86_64
starts it in place. Nothing is installed. Where a version cannot be had, .cache/qemu-VERSION/missing says why and the
set-up goes on: the tests report what they lack. An earlier QEMU stays until the new one is there.

A QEMU of this machine's own release takes what it can from the machine. One of a later release needs that release's
C library too, so it comes with all of its libraries, and its binary names them: its process is QEMU, not the loader.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.setup.errors import SetupFailed
from deploy.setup.private_apt import PrivateApt

CACHE = Path(__file__).parents[2] / ".cache"
START_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class FurtherQemu:
    """A QEMU that the tests want, and the Debian release in whose backports it is."""

    version: str
    codename: str = ""
    """Empty is the release of this machine."""


QEMUS = (
    FurtherQemu("10.0"),
    FurtherQemu("11.1", codename="trixie"),
)

_PACKAGE = "qemu-system-x86"
_BINARY = "usr/bin/qemu-system-x86_64"
_LIBRARY = "usr/lib/x86_64-linux-gnu"
_LOADER = f"{_LIBRARY}/ld-linux-x86-64.so.2"
_FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
_NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/i18n", "var")
_WRAPPER = """\
#!/bin/sh
# Made by `make setup`. A QEMU of Debian looks for all that it loads below /usr, so it is told where its own is.
export QEMU_MODULE_DIR="{library}/qemu"
{environment}exec "{binary}" {firmware} "$@"
"""
_LIBRARY_PATH = 'export LD_LIBRARY_PATH="{library}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"\n'


def fetch_qemu(wanted: FurtherQemu, directory: Path) -> str:
    """Unpack QEMU, write its wrapper, start it once, and return its Debian version.

    Raises:
        SetupFailed: it is not to be had or does not work here.
    """
    is_apart = wanted.codename not in {"", PrivateApt.machine_codename()}
    apt = PrivateApt(directory / "apt" if is_apart else CACHE / "apt", codename=wanted.codename, is_apart=is_apart)
    apt.update()
    packages = apt.missing_for(_PACKAGE, f"{apt.codename}-backports")
    version = packages.get(_PACKAGE, "")
    if f":{wanted.version}." not in version:
        raise SetupFailed(f"the backports of {apt.codename} offer {_PACKAGE} {version or 'as it is installed'}")
    root, unpacked = directory / "root", directory / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    apt.unpack([f"{name}={of_version}" for name, of_version in packages.items()], unpacked)
    for name in _NOT_NEEDED:
        shutil.rmtree(unpacked / name, ignore_errors=True)
    shutil.rmtree(root, ignore_errors=True)
    unpacked.replace(root)
    if is_apart:
        _bind_to_libraries(root)
    wrapper = directory / "bin" / "qemu-system-x86_64"
    _write_wrapper(wrapper, root, is_bound=is_apart)
    try:
        _check(wrapper, wanted.version)
    except SetupFailed:
        wrapper.unlink()
        raise
    shutil.rmtree(directory / "apt", ignore_errors=True)
    return version


def _bind_to_libraries(root: Path) -> None:
    """Make the binary, and the modules that it loads, use the libraries of `root` alone.

    `DT_RPATH` counts for what the libraries themselves need, `DT_RUNPATH` would not: ld.so(8).

    Raises:
        SetupFailed: there is no patchelf, or it failed.
    """
    # fmt: off
    command = (
        "patchelf",
        "--set-interpreter", str(root / _LOADER),
        "--force-rpath", "--set-rpath", str(root / _LIBRARY),
        str(root / _BINARY),
    )
    # fmt: on
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise SetupFailed("patchelf is not here; the development packages of requirements.lock bring it") from error
    except subprocess.CalledProcessError as error:
        raise SetupFailed(f"patchelf {root / _BINARY}: exit status {error.returncode}\n{error.stderr}") from error


def _write_wrapper(wrapper: Path, root: Path, *, is_bound: bool) -> None:
    """Write the script; a firmware directory whose package the machine already has is taken from there."""
    firmware = (root / name if (root / name).exists() else Path("/", name) for name in _FIRMWARE)
    library = root / _LIBRARY
    text = _WRAPPER.format(
        library=library,
        environment="" if is_bound else _LIBRARY_PATH.format(library=library),
        binary=root / _BINARY,
        firmware=" ".join(f'-L "{directory}"' for directory in firmware),
    )
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    wrapper.write_text(text, encoding="utf-8")
    wrapper.chmod(0o755)


def _check(wrapper: Path, version: str) -> None:
    """Start a machine that needs a ROM for its network card, and ask its version over QMP.

    Raises:
        SetupFailed: it does not start, or says another version.
    """
    # fmt: off
    command = (
        wrapper, "-nodefaults", "-no-user-config", "-S",
        "-machine", "q35,accel=tcg",
        "-device", "virtio-net-pci",
        "-vnc", "none",
        "-qmp", "stdio",
    )
    # fmt: on
    talk = "".join(json.dumps({"execute": name}) + "\n" for name in ("qmp_capabilities", "query-version", "quit"))
    try:
        result = subprocess.run(command, input=talk, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SetupFailed(f"QEMU {version}: does not start within {START_TIMEOUT_S} s") from error
    major, minor = version.split(".")
    if result.returncode != 0 or f'"minor": {minor}, "major": {major}' not in result.stdout:
        raise SetupFailed(f"QEMU {version}: exit status {result.returncode}\n{result.stderr}{result.stdout}")


def main(version: str) -> None:
    """Make a further QEMU of this tree, or leave word why it is missing."""
    (wanted,) = (qemu for qemu in QEMUS if qemu.version == version)
    directory = CACHE / f"qemu-{version}"
    directory.mkdir(parents=True, exist_ok=True)
    missing = directory / "missing"
    try:
        debian_version = fetch_qemu(wanted, directory)
    except SetupFailed as error:
        missing.write_text(f"{error}\n", encoding="utf-8")
        print(f"setup: QEMU {version} cannot be had; the tests on it say that they miss it: {error}")
        return
    missing.unlink(missing_ok=True)
    (directory / ".ready").touch()
    print(f"setup: QEMU {debian_version}, beside the installed one")


if __name__ == "__main__":
    main(sys.argv[1])
