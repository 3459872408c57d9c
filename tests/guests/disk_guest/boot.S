# Boot sector, parameters and exception entries of the disk guest; the rest is C. See main.c.
#
# Loads itself to 0x7c00, goes to 32-bit protected mode without paging and calls guest_main.

.intel_syntax noprefix
.set ORIGIN, 0x7c00
.set SECTORS, 48                    # behind the boot sector; disk.py fills them

.section .text.boot, "ax"
.include "boot_sector.S"

# Second and third sector: what the builder fills in.
.globl parameters
parameters:
    .ascii  "DISK"
.org 512 * 3

.code32
protected:
    mov     ax, 0x10
    mov     ds, ax
    mov     es, ax
    mov     ss, ax
    mov     fs, ax
    mov     gs, ax
    mov     esp, ORIGIN
    mov     edi, offset __bss_start
    mov     ecx, offset _end
    sub     ecx, edi
    xor     eax, eax
    rep     stosb
    call    guest_main
1:  cli
    hlt
    jmp     1b

# 32 entries of 16 bytes. Some exceptions push an error code; then the address shown is that code.
.balign 16
.globl fault_entries
fault_entries:
.set vector, 0
.rept 32
    push    vector
    jmp     fault
    .balign 16
    .set vector, vector + 1
.endr
fault:
    call    report_fault            # (vector, address)
