# Boot sector, parameters and exception entries of the disk guest; the rest is C. See main.c.
#
# Loads itself to 0x7c00, goes to 32-bit protected mode without paging and calls guest_main.

.intel_syntax noprefix
.set ORIGIN, 0x7c00
.set SECTORS, 48                    # behind the boot sector; disk.py fills them

.section .text.boot, "ax"
.code16
.globl _start
_start:
    cli
    cld
    xor     ax, ax
    mov     ds, ax
    mov     es, ax
    mov     ss, ax
    mov     sp, ORIGIN
    jmp     0, offset load
load:
    mov     si, offset disk_packet
    mov     ah, 0x42                # extended read; dl is still the boot disk
    int     0x13
    jc      no_disk
    cli
    in      al, 0x92                # A20, in case the firmware left it off
    or      al, 2
    and     al, 0xfe
    out     0x92, al
    lgdt    [gdt_pointer]
    mov     eax, cr0
    or      eax, 1
    mov     cr0, eax
    jmp     8, offset protected
no_disk:
    hlt
    jmp     no_disk

disk_packet:
    .byte   16, 0
    .word   SECTORS, ORIGIN + 512, 0
    .quad   1

.balign 8
gdt:
    .quad   0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
    .word   . - gdt - 1
    .long   gdt

.org 510
    .word   0xaa55

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
