# The tick guest: a boot sector that changes and checks a pattern in memory and counts on COM1.
#
# Every 4 KiB page above 1 MiB holds its own number, a generation and words that follow from both.
# Each tick the writer checks the next pages against the generation they must have, then rewrites
# them with the next one; a second cursor checks all pages over and over without writing. A page
# that a migration lost, or brought in an older state, is therefore reported by the guest itself.
#
#   ferry tick: 64 MiB                               once, at boot
#   tick 17 gen 3 sweep 2 ok                         each period; `bad 5` in place of `ok` after failures
#   BAD page 9 expected 3 found 2 at 4               and near which byte of the page
#   BAD counter 17 found 12                          the counter in memory is not the one in the CPU
#   BAD fault 13 at 32510                            CPU exception; the guest stands still from here
#
# It obeys the power button, and single letters on COM2: `o` powers off, `r` resets, `p` tells a pvpanic
# device of a panic and goes on, `w` writes a sector of the primary IDE disk and goes on once that is done.
#
# Built by tests/guests/tick.py, which also fills in `parameters`. 32-bit, no paging, one vCPU.

.intel_syntax noprefix
.set ORIGIN, 0x7c00
.set SECTORS, 7                     # behind the boot sector
.set IDT, 0x1000
.set FIRST_PAGE, 0x100000
.set PAGE, 4096
.set BLOCK_WORDS, 7                 # (PAGE / 4 - 2) is 146 blocks
.set BLOCKS_IN_PAGE, 146
.set COM1, 0x3f8
.set COM2, 0x2f8
.set PVPANIC, 0x505
.set RESET_CONTROL, 0xcf9
.set IDE, 0x1f0
.set WRITTEN_SECTOR, 3000           # behind the image that tick.py makes
.set REPORTED_BAD_PAGES, 16         # the rest is only counted
.set PM_STATUS, 0x600               # where SeaBIOS puts the ACPI registers, on pc and on q35
.set PM_ENABLE, 0x602
.set PM_CONTROL, 0x604
.set POWER_BUTTON, 0x100
.set SLEEP_S5, 0x2000
.set WRITE_PROTECT, 0x10000         # of cr0

# Variables, in a page without code: a write there costs no translated code.
.set VARIABLES, 0xa000
.set cursor, VARIABLES              # pages below it have `generation`, the others one less
.set generation, VARIABLES + 4
.set verify_cursor, VARIABLES + 8
.set sweep, VARIABLES + 12
.set write_sum, VARIABLES + 16
.set verify_sum, VARIABLES + 20
.set counter, VARIABLES + 24        # a copy of ebp
.set bad_count, VARIABLES + 28
.set elapsed, VARIABLES + 32
.set due, VARIABLES + 36
.set VARIABLE_WORDS, 10

.include "boot_sector.S"

# Second sector: what the builder fills in.
parameters:
    .ascii  "TICK"
pages:            .long 0
write_credit:     .long 0           # pages a tick, 16.16
verify_credit:    .long 0           # pages a tick, 16.16
pit_divisor:      .long 0
interrupts_per_tick: .long 0
page_blocks:      .long 0           # BLOCKS_IN_PAGE: the whole page; 1: only its edges
seed:             .long 0
megabytes:        .long 0
widening_count:   .long 0           # doublings of the TLB; 0 leaves it alone

.code32
protected:
    mov     ax, 0x10
    mov     ds, ax
    mov     es, ax
    mov     ss, ax
    mov     fs, ax
    mov     gs, ax
    mov     esp, ORIGIN
    mov     edi, VARIABLES
    mov     ecx, VARIABLE_WORDS
    xor     eax, eax
    rep     stosd
    mov     dword ptr [generation], 2

    mov     dx, COM1 + 1
    xor     al, al
    out     dx, al                  # no UART interrupts
    mov     dx, COM1 + 3
    mov     al, 0x80
    out     dx, al
    mov     dx, COM1
    mov     al, 1
    out     dx, al                  # 115200
    inc     dx
    xor     al, al
    out     dx, al
    mov     dx, COM1 + 3
    mov     al, 3
    out     dx, al                  # 8N1
    mov     esi, offset text_boot
    call    print
    mov     eax, [megabytes]
    call    print_number
    mov     esi, offset text_mib
    call    print

    call    check_memory_size
    call    fill
    call    widen_tlb
    call    start_timer
    mov     ax, POWER_BUTTON
    mov     dx, PM_ENABLE
    out     dx, ax
    xor     ebp, ebp                # the counter; ebp is used for nothing else

wait:
    cli
    cmp     dword ptr [due], 0
    jne     tick
    sti
    hlt                             # sti takes effect after it, so no interrupt is lost between
    jmp     wait
tick:
    mov     dword ptr [due], 0
    sti
    call    rewrite
    call    verify
    cmp     [counter], ebp
    je      counted
    mov     esi, offset text_bad_counter
    call    print
    mov     eax, ebp
    call    print_number
    mov     esi, offset text_found
    call    print
    mov     eax, [counter]
    call    print_number
    call    end_line
    inc     dword ptr [bad_count]
counted:
    inc     ebp
    mov     [counter], ebp
    call    report
    call    obey_power_button
    call    obey_letter
    jmp     wait

# Memory above 16 MiB in units of 64 KiB stands in CMOS 0x34 and 0x35.
check_memory_size:
    mov     al, 0x35
    out     0x70, al
    in      al, 0x71
    movzx   eax, al
    shl     eax, 8
    mov     edx, eax
    mov     al, 0x34
    out     0x70, al
    in      al, 0x71
    mov     dl, al
    shr     edx, 4                  # MiB
    add     edx, 15                 # less the first one
    cmp     [megabytes], edx
    jbe     1f
    push    edx
    mov     esi, offset text_bad_memory
    call    print
    pop     eax
    call    print_number
    call    end_line
    jmp     halt
1:  ret

fill:
    xor     eax, eax
1:  mov     edx, 1
    push    eax
    call    write_page
    pop     eax
    inc     eax
    cmp     eax, [pages]
    jb      1b
    ret

# Give every page a TLB entry of its own. TCG's TLB has 256 entries, and doubles at a flush when it
# was full. So: touch all pages, flush, and again.
widen_tlb:
    mov     ecx, [widening_count]
    test    ecx, ecx
    jz      3f
1:  mov     edi, FIRST_PAGE
    mov     edx, [pages]
2:  mov     eax, [edi]
    add     edi, PAGE
    dec     edx
    jnz     2b
    mov     eax, cr0                # a change of this bit flushes
    xor     eax, WRITE_PROTECT
    mov     cr0, eax
    dec     ecx
    jnz     1b
3:  ret

start_timer:
    mov     edi, IDT
    mov     ecx, 0
1:  mov     eax, offset spurious
    cmp     ecx, 32
    ja      2f
    mov     eax, offset timer
    je      2f
    mov     eax, ecx
    shl     eax, 4
    add     eax, offset faults
2:  mov     [edi], ax
    mov     word ptr [edi + 2], 8
    mov     word ptr [edi + 4], 0x8e00
    shr     eax, 16
    mov     [edi + 6], ax
    add     edi, 8
    inc     ecx
    cmp     ecx, 48
    jb      1b
    lidt    [idt_pointer]

    mov     al, 0x11                # both interrupt controllers: vectors from 32
    out     0x20, al
    out     0xa0, al
    mov     al, 32
    out     0x21, al
    mov     al, 40
    out     0xa1, al
    mov     al, 4
    out     0x21, al
    mov     al, 2
    out     0xa1, al
    mov     al, 1
    out     0x21, al
    out     0xa1, al
    mov     al, 0xfe                # the timer only
    out     0x21, al
    mov     al, 0xff
    out     0xa1, al

    mov     al, 0x34                # PIT channel 0, rate generator
    out     0x43, al
    mov     eax, [pit_divisor]
    out     0x40, al
    mov     al, ah
    out     0x40, al
    ret

timer:
    push    eax
    inc     dword ptr [elapsed]
    mov     eax, [interrupts_per_tick]
    cmp     [elapsed], eax
    jb      1f
    mov     dword ptr [elapsed], 0
    mov     dword ptr [due], 1
1:  mov     al, 0x20
    out     0x20, al
    pop     eax
spurious:
    iretd

# 32 entries of 16 bytes. Some exceptions push an error code; then the address shown is that code.
.balign 16
faults:
.set vector, 0
.rept 32
    push    vector
    jmp     fault
    .balign 16
    .set vector, vector + 1
.endr
fault:
    mov     esi, offset text_bad_fault
    call    print
    pop     eax
    call    print_number
    mov     esi, offset text_at
    call    print
    pop     eax
    call    print_number
    call    end_line
halt:
    cli
    hlt
    jmp     halt

# Check, then rewrite, as many pages as this tick's credit allows.
rewrite:
    mov     eax, [write_credit]
    add     eax, [write_sum]
    movzx   ecx, ax
    mov     [write_sum], ecx
    shr     eax, 16
    jz      3f
    mov     ecx, eax
1:  push    ecx
    mov     eax, [cursor]
    mov     edx, [generation]
    dec     edx
    call    check_page
    mov     eax, [cursor]
    mov     edx, [generation]
    call    write_page
    inc     dword ptr [cursor]
    mov     eax, [cursor]
    cmp     eax, [pages]
    jb      2f
    mov     dword ptr [cursor], 0
    inc     dword ptr [generation]
2:  pop     ecx
    dec     ecx
    jnz     1b
3:  ret

# Check as many pages as this tick's credit allows, wherever the writer is.
verify:
    mov     eax, [verify_credit]
    add     eax, [verify_sum]
    movzx   ecx, ax
    mov     [verify_sum], ecx
    shr     eax, 16
    jz      4f
    mov     ecx, eax
1:  push    ecx
    mov     eax, [verify_cursor]
    mov     edx, [generation]
    cmp     eax, [cursor]
    jb      2f
    dec     edx
2:  call    check_page
    inc     dword ptr [verify_cursor]
    mov     eax, [verify_cursor]
    cmp     eax, [pages]
    jb      3f
    mov     dword ptr [verify_cursor], 0
    inc     dword ptr [sweep]
3:  pop     ecx
    dec     ecx
    jnz     1b
4:  ret

# in: eax page, edx generation; out: edi the page, ebx first word, esi the step between words.
page_words:
    mov     edi, eax
    shl     edi, 12
    add     edi, FIRST_PAGE
    imul    ebx, eax, 0x9e3779b1
    imul    esi, edx, 0x85ebca77
    xor     ebx, esi
    xor     ebx, [seed]
    mov     esi, ebx
    shr     esi, 15
    xor     ebx, esi
    imul    ebx, ebx, 0x2c1b3c6d
    mov     esi, ebx
    shr     esi, 13
    xor     ebx, esi
    mov     esi, ebx
    or      esi, 1
    ret

# in: eax page, edx generation.
write_page:
    call    page_words
    mov     [edi], eax
    mov     [edi + 4], edx
    add     edi, 8
    mov     ecx, [page_blocks]
    call    write_blocks
    cmp     dword ptr [page_blocks], 1
    jne     1f
    and     edi, -PAGE
    add     edi, PAGE - 4 * BLOCK_WORDS
    mov     ecx, 1
    call    write_blocks
1:  ret

write_blocks:
.set offset_in_block, 0
.rept BLOCK_WORDS
    add     ebx, esi
    mov     [edi + offset_in_block], ebx
    .set offset_in_block, offset_in_block + 4
.endr
    add     edi, 4 * BLOCK_WORDS
    dec     ecx
    jnz     write_blocks
    ret

# in: eax page, edx generation it must have. A wrong page is reported and counted.
check_page:
    call    page_words
    cmp     [edi], eax
    jne     bad_page
    add     edi, 4
    cmp     [edi], edx
    jne     bad_page
    add     edi, 4
    mov     ecx, [page_blocks]
    call    check_blocks
    jne     bad_page
    cmp     dword ptr [page_blocks], 1
    jne     1f
    and     edi, -PAGE
    add     edi, PAGE - 4 * BLOCK_WORDS
    mov     ecx, 1
    call    check_blocks
    jne     bad_page
1:  ret

# out: zero flag set if all words are right; else edi is the block with the wrong one.
check_blocks:
.set offset_in_block, 0
.rept BLOCK_WORDS
    add     ebx, esi
    cmp     [edi + offset_in_block], ebx
    jne     1f
    .set offset_in_block, offset_in_block + 4
.endr
    add     edi, 4 * BLOCK_WORDS
    dec     ecx
    jnz     check_blocks
1:  ret

# in: eax page, edx expected generation, edi where it went wrong.
bad_page:
    inc     dword ptr [bad_count]
    cmp     dword ptr [bad_count], REPORTED_BAD_PAGES
    ja      1f
    push    edi
    push    eax
    push    edx
    mov     esi, offset text_bad_page
    call    print
    mov     eax, [esp + 4]
    call    print_number
    mov     esi, offset text_expected
    call    print
    mov     eax, [esp]
    call    print_number
    mov     esi, offset text_found
    call    print
    mov     edi, [esp + 4]
    shl     edi, 12
    mov     eax, [edi + FIRST_PAGE + 4]
    call    print_number
    mov     esi, offset text_at
    call    print
    mov     eax, [esp + 8]
    and     eax, PAGE - 1
    call    print_number
    call    end_line
    add     esp, 12
1:  ret

report:
    mov     esi, offset text_tick
    call    print
    mov     eax, ebp
    call    print_number
    mov     esi, offset text_generation
    call    print
    mov     eax, [generation]
    call    print_number
    mov     esi, offset text_sweep
    call    print
    mov     eax, [sweep]
    call    print_number
    mov     esi, offset text_ok
    cmp     dword ptr [bad_count], 0
    je      print
    mov     esi, offset text_bad
    call    print
    mov     eax, [bad_count]
    call    print_number
end_line:
    mov     esi, offset text_end
    jmp     print

obey_power_button:
    mov     dx, PM_STATUS
    in      ax, dx
    cmp     ax, 0xffff              # a machine without ACPI
    je      1f
    test    ax, POWER_BUTTON
    jz      1f
    mov     esi, offset text_power_button
    call    print
power_off:
    mov     ax, SLEEP_S5
    mov     dx, PM_CONTROL
    out     dx, ax
    jmp     halt
1:  ret

obey_letter:
    mov     dx, COM2 + 5
    in      al, dx
    cmp     al, 0xff                # no COM2
    je      1f
    test    al, 1
    jz      1f
    mov     dx, COM2
    in      al, dx
    cmp     al, 'o'
    je      power_off
    cmp     al, 'r'
    je      2f
    cmp     al, 'p'
    je      3f
    cmp     al, 'w'
    je      write_sector
1:  ret
2:  mov     dx, RESET_CONTROL
    mov     al, 2
    out     dx, al
    mov     al, 6
    out     dx, al
    jmp     halt
3:  mov     dx, PVPANIC
    mov     al, 1
    out     dx, al
    ret

write_sector:
    mov     dx, IDE + 6
    mov     al, 0xe0                # LBA, master
    out     dx, al
    mov     dx, IDE + 2
    mov     al, 1
    out     dx, al
    inc     dx
    mov     eax, WRITTEN_SECTOR
    out     dx, al
    inc     dx
    mov     al, ah
    out     dx, al
    inc     dx
    xor     al, al
    out     dx, al
    mov     dx, IDE + 7
    mov     al, 0x30                # write
    out     dx, al
1:  in      al, dx
    test    al, 8                   # wants data
    jz      1b
    mov     esi, ORIGIN
    mov     dx, IDE
    mov     ecx, 256
    rep     outsw
    mov     dx, IDE + 7
2:  in      al, dx
    test    al, 0x80                # busy
    jnz     2b
    ret

# in: esi, text that ends in a zero byte.
print:
    lodsb
    test    al, al
    jz      1f
    call    print_character
    jmp     print
1:  ret

# in: eax, shown in decimal.
print_number:
    mov     ebx, 10
    xor     ecx, ecx
1:  xor     edx, edx
    div     ebx
    push    edx
    inc     ecx
    test    eax, eax
    jnz     1b
2:  pop     eax
    add     al, 48
    call    print_character
    dec     ecx
    jnz     2b
    ret

print_character:
    mov     ah, al
    mov     dx, COM1 + 5
1:  in      al, dx
    test    al, 0x20
    jz      1b
    mov     dx, COM1
    mov     al, ah
    out     dx, al
    ret

idt_pointer:
    .word   48 * 8 - 1
    .long   IDT

text_boot:         .asciz "ferry tick: "
text_mib:          .asciz " MiB\n"
text_tick:         .asciz "tick "
text_generation:   .asciz " gen "
text_sweep:        .asciz " sweep "
text_ok:           .asciz " ok\n"
text_bad:          .asciz " bad "
text_end:          .asciz "\n"
text_bad_page:     .asciz "BAD page "
text_expected:     .asciz " expected "
text_found:        .asciz " found "
text_at:           .asciz " at "
text_bad_counter:  .asciz "BAD counter "
text_bad_memory:   .asciz "BAD memory: room for MiB "
text_bad_fault:    .asciz "BAD fault "
text_power_button: .asciz "ferry tick: power button\n"

.org 512 * (SECTORS + 1)
