"""The source's word on which host has the newest disks of a guest that goes along with them.

The images here are marked as older before the copying begins, far from the downtime; while the migration runs nobody can start the
VM. At its end the marks stay if the guest may have run at the destination, and go if it did not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.migration import outgoing as out
from agent.vm.disk_images import disk_images
from agent.vm.older_disks import OlderDisk, inode_of, key_of
from agent.vm.stored import find_stored

if TYPE_CHECKING:
    from agent.migration.record import Facts
    from agent.vm.jobs import JobLock
    from agent.vm.lifecycle import Vms
    from agent.vm.vm import Vm

FENCED = "FENCED"


def mark(vms: Vms, vm: Vm, facts: Facts) -> None:
    """Write down that the images of disks that are copied are about to be older than the copies; durable on return."""
    paths = {image.disk: image.path for image in disk_images(vm.get_running().definition)}
    vms.older_disks.mark(
        OlderDisk(
            disk=copy.disk,
            path=paths[copy.disk],
            key=key_of(paths[copy.disk]),
            inode=inode_of(paths[copy.disk]),
            newer_host=_peer(facts),
            newer_path=copy.path,
            vm=_name(facts),
            is_kept_there=facts.is_kept_there,
            migration_id=facts.migration_id,
        )
        for copy in facts.copies
        if copy.disk in paths
    )


def settle(vms: Vms, lock: JobLock | None, facts: Facts, phase: out.Phase) -> None:
    """Let the marks say what the end of a migration proves. May be repeated."""
    if not facts.copies:
        return
    if not are_there(facts, phase):
        vms.older_disks.forget_migration(facts.migration_id)
    elif isinstance(phase, out.Lost) and lock is not None:
        vms.leave(lock, _peer(facts))


def are_there(facts: Facts, phase: out.Phase) -> bool:
    """Say whether the destination has the newest disks, as far as the source can know."""
    if not facts.copies:
        return False
    return isinstance(phase, out.Retired) or (isinstance(phase, out.Lost | out.Losing) and phase.newest_is_there)


def text(facts: Facts, phase: out.Phase) -> str:
    """Tell of a guest that ended which host has its newest disks; empty where that is the source."""
    if isinstance(phase, out.Lost | out.Losing) and are_there(facts, phase):
        start = f"start it there: ferry vm start {_name(facts)} --host {_peer(facts)}"
        if not facts.is_kept_there:
            start = "the VM is transient, so no host keeps its definition"
        return f"its newest disks are on {_peer(facts)}: {_copies(facts)}; those on the source are older; {start}"
    return ""


def fenced_text(facts: Facts) -> str:
    """Tell of a guest that an operator gave back to the source what may be on the other host alone."""
    if not facts.copies:
        return ""
    return f"what the guest wrote on {_peer(facts)}, if it ran there, is in the disks of that host alone: {_copies(facts)}"


def will_be_kept_there(vm: Vm, facts: Facts) -> bool:
    """Say whether the destination keeps the definition of the VM when its guest ends."""
    return facts.options.modes.is_persistent(on_source=find_stored(vm) is not None)


def _peer(facts: Facts) -> str:
    return facts.peer or "the destination"


def _name(facts: Facts) -> str:
    return facts.options.destination_name or facts.vm_name


def _copies(facts: Facts) -> str:
    return ", ".join(f"{copy.disk} in {copy.path}" for copy in facts.copies)
