"""What runs and what is stored of a VM whose disk has gone over to other images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from agent.vm.definition import Definition
    from agent.vm.vm import Vm

_log = structlog.get_logger()


def save_definitions(vm: Vm, running: Definition | None, persistent: Definition | None) -> None:
    """Write a VM's definitions, each whole or not at all; None leaves one as it is. May be repeated."""
    if running is not None and vm.running is not None and running != vm.running.definition:
        changed = replace(vm.running, definition=running)
        vm.directory.save_running(changed.to_record())
        vm.running = changed
    if persistent is not None and vm.persistent is not None and persistent != vm.persistent:
        vm.directory.save_definition(persistent.to_record())
        vm.persistent = persistent
    _log.info("vm has other images", vm=vm.name, uuid=str(vm.uuid))
