"""Fetches QEMU 10.0 from Debian's backports beside the installed QEMU, for the tests across versions.

Unpacks qemu-system-x86 and those of its dependencies that the machine lacks or has in another version into
.cache/qemu-10.0/root; .cache/qemu-10.0/bin/qemu-system-x86_64 starts it in place. Nothing is installed. Where the
backports cannot be had, .cache/qemu-10.0/missing says why and the set-up goes on: the tests report what they lack.
An earlier QEMU stays until the new one is there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from deploy.setup.errors import SetupFailed
from deploy.setup.private_apt import PrivateApt

VERSION = "10.0"
CACHE = Path(__file__).parents[2] / ".cache"
START_TIMEOUT_S = 30.0

_LIBRARY = "usr/lib/x86_64-linux-gnu"
_FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
_WRAPPER = """\
#!/bin/sh
# Made by `make setup`. A QEMU of Debian looks for all that it loads below /usr, so it is told where its own is.
export LD_LIBRARY_PATH="{library}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
export QEMU_MODULE_DIR="{library}/qemu"
exec "{binary}" {firmware} "$@"
"""


def fetch_qemu(apt: PrivateApt, directory: Path) -> str:
    """Unpack QEMU, write its wrapper, start it once, and return its Debian version.

    Raises:
        SetupFailed: it is not to be had or does not work here.
    """
    packages = apt.missing_for("qemu-system-x86", f"{apt.codename}-backports")
    version = packages.get("qemu-system-x86", "")
    if f":{VERSION}." not in version:
        raise SetupFailed(f"the backports of {apt.codename} offer qemu-system-x86 {version or 'as it is installed'}")
    root, unpacked = directory / "root", directory / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    apt.unpack([f"{name}={wanted}" for name, wanted in packages.items()], unpacked)
    shutil.rmtree(root, ignore_errors=True)
    unpacked.replace(root)
    wrapper = directory / "bin" / "qemu-system-x86_64"
    _write_wrapper(wrapper, root)
    try:
        _check(wrapper)
    except SetupFailed:
        wrapper.unlink()
        raise
    return version


def _write_wrapper(wrapper: Path, root: Path) -> None:
    """Write the script; a firmware directory whose package the machine already has is taken from there."""
    firmware = (root / name if (root / name).exists() else Path("/", name) for name in _FIRMWARE)
    text = _WRAPPER.format(
        library=root / _LIBRARY,
        binary=root / "usr/bin/qemu-system-x86_64",
        firmware=" ".join(f'-L "{directory}"' for directory in firmware),
    )
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    wrapper.write_text(text, encoding="utf-8")
    wrapper.chmod(0o755)


def _check(wrapper: Path) -> None:
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
        raise SetupFailed(f"QEMU {VERSION}: does not start within {START_TIMEOUT_S} s") from error
    major, minor = VERSION.split(".")
    if result.returncode != 0 or f'"minor": {minor}, "major": {major}' not in result.stdout:
        raise SetupFailed(f"QEMU {VERSION}: exit status {result.returncode}\n{result.stderr}{result.stdout}")


def main() -> None:
    """Make the second QEMU of this tree, or leave word why it is missing."""
    directory = CACHE / f"qemu-{VERSION}"
    directory.mkdir(parents=True, exist_ok=True)
    missing = directory / "missing"
    apt = PrivateApt(CACHE / "apt")
    try:
        apt.update()
        version = fetch_qemu(apt, directory)
    except SetupFailed as error:
        missing.write_text(f"{error}\n", encoding="utf-8")
        print(f"setup: QEMU {VERSION} cannot be had; the tests on it say that they miss it: {error}")
        return
    missing.unlink(missing_ok=True)
    (directory / ".ready").touch()
    print(f"setup: QEMU {version}, beside the installed one")


if __name__ == "__main__":
    main()
