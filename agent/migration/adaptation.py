"""A definition of the user's own for the destination, which may differ in what the guest cannot tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from agent.migration.order import DiskMarker
from agent.vm.definition import Definition
from agent.vm.domain.parse import parse_domain
from agent.vm.guest_view import board, differences
from agent.vm.host_files import written_images
from common.errors import InvalidRequest, WrongState

_MOST_NAMED: Final = 5
# Source: hw/i386/pc_piix.c and pc_q35.c, the aliases of the newest versions.
_ALIASES: Final = {"pc": "pc-i440fx", "q35": "pc-q35"}


def adapt(running: Definition, xml: bytes, *, name: str) -> Definition:
    """Return the definition of the XML as the destination of this guest.

    Args:
        running: what the guest runs as.
        xml: libvirt domain XML; without `<uuid>` it is the guest's.
        name: what the VM will be called on the destination.

    Raises:
        InvalidRequest: it is no domain XML that Ferry carries.
        WrongState: the guest would see a difference, or the XML has something that cannot migrate.
    """
    wanted = parse_domain(xml, "--xml", new_uuid=lambda: running.uuid)
    if wanted.name not in (running.name, name):
        raise _differs(running, (f"name: {running.name} in the guest, {wanted.name} in the XML; --name renames",))
    if _ALIASES.get(wanted.machine, wanted.machine) == board(running.machine):  # without a version: the one that runs
        wanted = replace(wanted, machine=running.machine)
    if found := differences(running, wanted):
        raise _differs(running, found)
    if wanted.blockers:
        raise WrongState(f"--xml: VM {running.name} could not migrate on: {'; '.join(wanted.blockers)}", reason="VM_CANNOT_MIGRATE")
    return replace(wanted, accelerator=running.accelerator, current_memory_kib=running.current_memory_kib)


def elsewhere(markers: tuple[DiskMarker, ...], running: Definition, wanted: Definition) -> tuple[DiskMarker, ...]:
    """Return the markers with the paths that the images have on the destination."""
    paths = {
        (ours.what, ours.path): theirs.path for ours, theirs in zip(written_images(running), written_images(wanted), strict=True)
    }
    return tuple(replace(marker, image_path=paths[f"disk {marker.disk}", marker.image_path]) for marker in markers)


def _differs(running: Definition, found: tuple[str, ...]) -> InvalidRequest:
    more = f"; and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return InvalidRequest(
        f"--xml: VM {running.name} would change under its guest: {'; '.join(found[:_MOST_NAMED])}{more}; "
        "only what stands behind the guest on the host may differ",
        reason="GUEST_ABI_DIFFERS",
        vm=running.name,
    )
