"""A guest of 64 KiB that proves an accelerator works, as our own machine code.

The firmware enters long mode through page tables it builds, writes and reads 16 MiB, and leaves through QEMU's device
`isa-debug-exit`. Only an accelerator that really executes guest code gets it to the end; one that fails hangs,
aborts, or never starts. Source of the encodings: Intel SDM, volume 2.
"""

from __future__ import annotations

import struct
from typing import Final

ROM_BYTES: Final = 64 * 1024
EXIT_PORT: Final = 0xF4
EXIT_CODE: Final = 99
"""isa-debug-exit ends QEMU with (value << 1) | 1; the guest writes 0x31."""

_ROM_SEGMENT: Final = 0xF000
_ROM_ADDRESS: Final = 0xF0000  # the last 64 KiB below 1 MiB show the ROM
_RESET_OFFSET: Final = 0xFFF0
_GDT_OFFSET: Final = 0x0800
_GDT_POINTER_OFFSET: Final = 0x0820
_LONG_MODE_OFFSET: Final = 0x0400
_CODE_SELECTOR: Final = 0x08
_CODE_DESCRIPTOR: Final = 0x00AF9A000000FFFF  # present, ring 0, code, readable, 64 bits


def build_rom() -> bytes:
    """Assemble the ROM."""
    rom = bytearray(b"\xf4" * ROM_BYTES)  # hlt
    for offset, code in (
        (0, _REAL_MODE),
        (_LONG_MODE_OFFSET, _LONG_MODE),
        (_GDT_OFFSET, struct.pack("<QQ", 0, _CODE_DESCRIPTOR)),
        (_GDT_POINTER_OFFSET, struct.pack("<HI", 15, _ROM_ADDRESS + _GDT_OFFSET)),
        (_RESET_OFFSET, b"\xea" + struct.pack("<HH", 0, _ROM_SEGMENT)),  # jmp 0xf000:0 (below 1 MiB)
    ):
        rom[offset : offset + len(code)] = code
    return bytes(rom)


# fmt: off
_REAL_MODE: Final = b"".join((
    b"\xfa",                          # cli
    b"\xfc",                          # cld
    b"\x31\xc0",                      # xor ax, ax
    b"\x8e\xd8",                      # mov ds, ax
    b"\x8e\xc0",                      # mov es, ax
    # Clear three tables: PML4 at 0x1000, PDPT at 0x2000, PD at 0x3000.
    b"\xbf\x00\x10",                  # mov di, 0x1000
    b"\xb9\x00\x18",                  # mov cx, 0x1800        ; words
    b"\xf3\xab",                      # rep stosw
    b"\xc7\x06\x00\x10\x03\x20",      # mov word [0x1000], 0x2003  ; PML4[0]: present, writable
    b"\xc7\x06\x00\x20\x03\x30",      # mov word [0x2000], 0x3003  ; PDPT[0]
    # Map the first 32 MiB to itself in pages of 2 MiB.
    b"\xbf\x00\x30",                  # mov di, 0x3000
    b"\x66\xb8\x83\x00\x00\x00",      # mov eax, 0x83         ; present, writable, large
    b"\xb9\x10\x00",                  # mov cx, 16
    b"\x66\x89\x05",                  # next: mov [di], eax
    b"\x83\xc7\x08",                  # add di, 8
    b"\x66\x05\x00\x00\x20\x00",      # add eax, 0x200000
    b"\xe2\xf2",                      # loop next             ; 14 bytes back
    b"\x0f\x20\xe0",                  # mov eax, cr4
    b"\x0c\x20",                      # or al, 0x20           ; PAE
    b"\x0f\x22\xe0",                  # mov cr4, eax
    b"\x66\xb8\x00\x10\x00\x00",      # mov eax, 0x1000
    b"\x0f\x22\xd8",                  # mov cr3, eax
    b"\x66\xb9\x80\x00\x00\xc0",      # mov ecx, 0xc0000080   ; EFER
    b"\x0f\x32",                      # rdmsr
    b"\x80\xcc\x01",                  # or ah, 1              ; LME
    b"\x0f\x30",                      # wrmsr
    b"\x2e\x0f\x01\x16",              # lgdt cs:[pointer]
    struct.pack("<H", _GDT_POINTER_OFFSET),
    b"\x0f\x20\xc0",                  # mov eax, cr0
    b"\x66\x0d\x01\x00\x00\x80",      # or eax, 0x80000001    ; PG, PE
    b"\x0f\x22\xc0",                  # mov cr0, eax
    b"\x66\xea",                      # jmp 8:long
    struct.pack("<IH", _ROM_ADDRESS + _LONG_MODE_OFFSET, _CODE_SELECTOR),
))

_LONG_MODE: Final = b"".join((
    b"\xbf\x00\x00\x10\x00",          # mov edi, 0x100000     ; from 1 MiB
    b"\x48\x89\x3f",                  # next: mov [rdi], rdi
    b"\x48\x39\x3f",                  # cmp [rdi], rdi
    b"\x75\x12",                      # jne stop              ; 18 bytes on
    b"\x81\xc7\x00\x10\x00\x00",      # add edi, 0x1000
    b"\x81\xff\x00\x00\x10\x01",      # cmp edi, 0x1100000    ; to 17 MiB
    b"\x72\xea",                      # jb next               ; 22 bytes back
    b"\xb0\x31",                      # mov al, 0x31
    b"\xe6\xf4",                      # out 0xf4, al
    b"\xf4",                          # stop: hlt
    b"\xeb\xfd",                      # jmp stop
))
# fmt: on
