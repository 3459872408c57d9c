"""What QEMU tells people of the pieces of its guest's memory, as 7.2.22 and 10.0.2 told it."""

from __future__ import annotations

from agent.qemu.ram_blocks import RamBlock, decode_ram_blocks

OLD = """\
              Block Name    PSize              Offset               Used              Total
                      d0    4 KiB  0x0000000004000000 0x0000000008000000 0x0000000008000000
         /objects/ram-0    2 MiB  0x0000000000000000 0x0000000004000000 0x0000000004000000
0000:00:02.0/virtio-net-pci.rom    4 KiB  0x000000000d0c0000 0x0000000000040000 0x0000000000080000
"""
NEW = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000 0x00007fc04fe00000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000004080000 0x0000000000020000 0x0000000000200000 0x00007fc0a1000000  ro
"""
MIB = 1 << 20


def test_both_forms_are_read_and_who_may_write_is_told_where_qemu_tells():
    old, new = decode_ram_blocks(OLD), decode_ram_blocks(NEW)

    assert old[:2] == (RamBlock("d0", 64 * MIB, 128 * MIB, 128 * MIB), RamBlock("/objects/ram-0", 0, 64 * MIB, 64 * MIB))
    assert (old[2].used_bytes, old[2].total_bytes) == (256 << 10, 512 << 10)
    assert not any(block.is_read_only for block in old)
    assert new == (RamBlock("pc.ram", 0, 64 * MIB, 64 * MIB), RamBlock("/rom@etc/acpi/tables", 0x4080000, 128 << 10, 2 * MIB, True))


def test_memory_is_told_from_what_belongs_to_devices_and_firmware():
    old = decode_ram_blocks(OLD)

    assert [block.is_memory for block in old] == [True, True, False]
    assert old[1].label == "ram-0"
    assert not RamBlock("pc.bios", 0, 1, 1).is_memory
    assert not RamBlock("system.flash0", 0, 1, 1).is_memory
