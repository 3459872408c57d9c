"""One VM on two hosts, and an older image under a disk: refused unless forced, and found by `ferry doctor`."""

from __future__ import annotations

import json
from uuid import uuid4

from tests.e2e.guest import Plan, domain
from tests.e2e.lab import Lab
from tests.e2e.test_plan import ferry
from tests.e2e.waiting import until_equal


async def refused(lab: Lab, reason: str, *arguments: str) -> str:
    code, _, told = await ferry(lab, *arguments)
    assert (code, f"[{reason}]" in told) == (1, True), told
    return told


async def test_a_vm_is_not_made_on_a_second_host_and_doctor_finds_one_that_was(lab: Lab):
    uuid = uuid4()
    xml = lab.directory / "web.xml"
    xml.write_bytes(domain(Plan(), lab.directory, uuid=uuid))
    guest = await lab.start_guest()
    xml.write_bytes(domain(Plan(), lab.directory, uuid=guest.uuid))

    told = await refused(lab, "VM_EXISTS_ELSEWHERE", "vm", "define", str(xml), "--host", "host-b")
    assert "VM web on host-a" in told
    await refused(lab, "VM_RUNS_ELSEWHERE", "vm", "create", str(xml), "--host", "host-b")
    assert (await ferry(lab, "vm", "define", str(xml), "--host", "host-b", "--force"))[0] == 0
    await refused(lab, "VM_RUNS_ELSEWHERE", "vm", "start", "web", "--host", "host-b")
    code, said, _ = await ferry(lab, "doctor", "-o", "json")

    assert code == 1
    [pair] = [one for one in json.loads(said) if one["kind"] == "DEFINED_TWICE"]
    assert (pair["host"], pair["vm_name"]) == ("host-a, host-b", "web")
    assert pair["advice"].endswith("ferry vm undefine web --host host-b")
    assert (await ferry(lab, "vm", "undefine", "web", "--host", "host-b"))[0] == 0
    assert (await ferry(lab, "doctor"))[0] == 0
    await lab.assert_only_on("host-a", guest)


async def test_one_save_file_does_not_bring_a_guest_back_on_two_hosts(lab: Lab):
    guest = await lab.start_guest()
    saved = lab.directory / "web.save"
    assert (await ferry(lab, "vm", "save", "web", str(saved)))[0] == 0
    assert (await ferry(lab, "vm", "restore", str(saved), "--host", "host-a"))[0] == 0

    told = await refused(lab, "VM_RUNS_ELSEWHERE", "vm", "restore", str(saved), "--host", "host-b")

    assert "runs on host-a" in told
    assert await lab.vms("host-b") == {}
    await lab.assert_only_on("host-a", guest)


async def test_an_xml_from_before_a_pivot_does_not_put_the_old_image_back(lab: Lab):
    guest = await lab.start_guest()
    xml = domain(Plan(), lab.directory, uuid=guest.uuid)
    path = lab.directory / "web.xml"
    path.write_bytes(xml)
    new = lab.directory / "new.raw"
    assert (await ferry(lab, "block", "copy", "web", "vda", "--to", str(new), "--pivot"))[0] == 0

    told = await refused(lab, "IMAGE_REPLACED", "vm", "define", str(path), "--host", "host-a")

    assert f"disk vda is on {new}" in told
    path.write_bytes(xml.replace(_image(xml), str(new).encode()))
    assert (await ferry(lab, "vm", "define", str(path), "--host", "host-a"))[0] == 0
    path.write_bytes(xml)
    assert (await ferry(lab, "vm", "define", str(path), "--host", "host-a", "--force"))[0] == 0

    async def differs() -> bool:
        return (await lab.vm("host-a", "web")).definition_differs

    await until_equal(differs, True)
    await lab.stop_vm("host-a", "web")


def _image(xml: bytes) -> bytes:
    return xml.split(b'<source file="')[1].split(b'"')[0]
