"""Starting `swtpm`, the TPM behind a VM's `-tpmdev emulator`.

It serves one QEMU and ends with it. Its state lies in the VM's directory; a migration carries the state itself, so the
one at the destination starts empty.

Source: swtpm(8), docs/specs/tpm.rst of QEMU.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Final

from common.errors import WrongState

if TYPE_CHECKING:
    from agent.store import VmDirectory
    from agent.vm.definition import Definition

SOCKET_NAME: Final = "swtpm.sock"
START_TIMEOUT_S: Final = 10.0


def start_tpm(definition: Definition, directory: VmDirectory) -> None:
    """Start the TPM of a definition that has one; on return it listens. Blocks for some milliseconds.

    Raises:
        WrongState: swtpm is not installed here, or refused; the text has its words.
    """
    if not any(True for _ in definition.find("tpmdev")):
        return
    binary = shutil.which("swtpm")
    if binary is None:
        raise WrongState(
            f"VM {definition.name} has a TPM: swtpm is not installed on this host (package swtpm)",
            reason="TPM_MISSING",
            vm=definition.name,
        )
    state = directory.path / "tpm"
    state.mkdir(mode=0o700, exist_ok=True)
    log = directory.path / "swtpm.log"
    log.touch(mode=0o600)
    directory.guests.admit(directory.path)
    directory.guests.own(state, *state.iterdir(), log)
    control = directory.run_dir / SOCKET_NAME
    control.unlink(missing_ok=True)
    command = [
        *directory.guests.prefix,
        *(binary, "socket", "--tpm2", "--daemon", "--terminate"),
        *("--tpmstate", f"dir={state},mode=0600"),
        *("--ctrl", f"type=unixio,path={control},mode=0600"),
        *("--log", f"file={log},level=1"),
    ]
    ended = subprocess.run(command, capture_output=True, timeout=START_TIMEOUT_S, check=False)  # noqa: S603 - paths of our own
    if ended.returncode != 0:
        said = ended.stderr.decode(errors="replace").strip() or f"exit code {ended.returncode}"
        raise WrongState(f"the TPM of VM {definition.name} did not start: {said}", reason="TPM_NOT_STARTED", vm=definition.name)


def end_tpm(directory: VmDirectory) -> None:
    """Ensure that the TPM of an ended QEMU has ended too: one that nobody ever connected to still waits."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as waker:
        waker.connect(str(directory.run_dir / SOCKET_NAME))  # it ends when its first client leaves
