"""What the agent would do with a domain XML, without an agent: `ferry vm argv` runs this module.

Prints one JSON object: `{"argv": [...], "notes": [...]}`, or `{"error": {"text": ..., "reason": ..., "is_element": ...}}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from agent.vm import argv
from agent.vm.domain.cpu import qemu_feature_name
from agent.vm.domain.parse import parse_domain
from agent.vm.domain.reader import parse_xml
from agent.vm.host_checks import find_emulator
from agent.vm.pinning import pin
from agent.vm.probes import HostProbes, check_cpu_model, choose_accelerator
from agent.vm.settings import VmSettings
from agent.vm.spelling import spell
from common.errors import FerryError, WrongState

if TYPE_CHECKING:
    from agent.vm.domain.reader import Element

# The element that asks for what a QEMU may lack, by the reason of the refusal.
_ASKED_BY: Final = {
    "MACHINE_UNKNOWN": ("os", "type"),
    "TOO_MANY_VCPUS": ("vcpu",),
    "CPU_MODEL_UNKNOWN": ("cpu", "model"),
    "CPU_FEATURE_UNKNOWN": ("cpu",),
}


def main() -> None:
    """Read the XML from stdin and print its command line."""
    parser = argparse.ArgumentParser(prog="python -m agent.offline")
    parser.add_argument("--origin", default="stdin", help="what errors call the document")
    parser.add_argument("--qemu", default=None, help="the emulator, instead of the definition's or the host's own")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        found: dict[str, object] = asyncio.run(_build(sys.stdin.buffer.read(), arguments.origin, arguments.qemu))
    except FerryError as error:
        found = {"error": {"text": error.text, "reason": error.reason, "is_element": "line" in error.facts}}
    sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")


async def _build(xml: bytes, origin: str, qemu: str | None) -> dict[str, object]:
    definition = parse_domain(xml, origin)
    notes = [f"{blocker}: the VM cannot migrate" for blocker in definition.blockers]
    named = qemu or _existing(definition.emulator)
    if named is None and definition.emulator is not None:
        notes.append(f"emulator {definition.emulator} is not here: the host's own is used")
    binary = find_emulator(replace(definition, emulator=None), VmSettings(qemu=named) if named else VmSettings())
    probes = HostProbes(_cache_dir())
    facts = await probes.facts(binary)
    try:
        definition = spell(pin(definition, facts), facts.version)
        check_cpu_model(definition, facts)
    except WrongState as error:
        raise _at_element(error, xml, origin) from error
    accelerator = await choose_accelerator(definition, binary, probes)
    if definition.prefers_kvm and accelerator.value != "kvm":
        notes.append("KVM does not work here: the guest would run under TCG")
    host = argv.HostSide(str(binary), accelerator, None, run_dir=_run_dir())
    return {"argv": list(argv.build(definition, host)), "notes": notes}


def _at_element(error: WrongState, xml: bytes, origin: str) -> FerryError:
    """Say where the XML asks for what this QEMU has not; what is not asked for has no place."""
    tags, name = _ASKED_BY.get(error.reason, ()), error.facts.get("feature")
    element: Element | None = parse_xml(xml, origin)
    for tag in tags:
        element = None if element is None else element.child(tag)
    if element is not None and name is not None:
        named = (one for one in element.children("feature") if qemu_feature_name(one.get_attribute("name")) == name)
        element = next(named, element)
    return error if element is None or not tags else element.invalid(error.text)


def _existing(path: str | None) -> str | None:
    return path if path is not None and Path(path).exists() else None


def _run_dir() -> str:
    return "/run/ferry" if Path("/run/ferry").is_dir() else tempfile.gettempdir()


def _cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(home) / "ferry"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


if __name__ == "__main__":
    main()
