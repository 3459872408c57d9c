"""How talking to QEMU fails.

QemuRefused         QEMU answered with an error; nothing was changed
QemuInUse           another client holds the QMP socket
QemuSilent          no answer in time; the command may have run, or may yet run
QemuGone            the process is dead; nobody will answer
NotUnderstood       QEMU answered something we rely on in a shape we do not know, or nothing that can be read
"""

from __future__ import annotations

from common.errors import Bug, Busy, Unreachable, WrongState


class QemuRefused(WrongState):
    """QEMU answered with an error.

    Attributes:
        error_class: QMP's class, mostly `GenericError`, `CommandNotFound` for an unknown command.
        description: QEMU's own text, for people only.
    """

    default_reason = "QEMU_REFUSED"

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"{command}: {description}", command=command, error_class=error_class)
        self.error_class = error_class
        self.description = description


class QemuInUse(Busy):
    """Another client is attached to the QMP socket, so no greeting comes."""

    default_reason = "QMP_SOCKET_IN_USE"


class QemuSilent(Unreachable):
    """QEMU did not answer in time; what was asked may have happened or may yet happen."""

    default_reason = "QEMU_SILENT"


class QemuGone(Unreachable):
    """The QEMU process is dead."""

    default_reason = "QEMU_GONE"


class NotUnderstood(Bug):
    """A reply of QEMU lacks something that we rely on."""

    default_reason = "QMP_REPLY_NOT_UNDERSTOOD"
