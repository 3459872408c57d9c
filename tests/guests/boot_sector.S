# The boot sector of the guests, for `.include`: loads SECTORS more behind it, and goes to `protected` in 32-bit mode without paging.
#
# Who includes it sets ORIGIN, where the BIOS puts it, and SECTORS.

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
