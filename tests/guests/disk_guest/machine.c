/* The chips of a PC that the guest needs: timer, interrupt controllers, clock, memory, power. */
#include "guest.h"

enum {
    PM_STATUS = 0x600, /* where SeaBIOS puts the ACPI registers, on pc and on q35 */
    PM_ENABLE = 0x602,
    PM_CONTROL = 0x604,
    PM_TIMER = 0x608,
    PM_TIMER_PER_MS = 3580,
    POWER_BUTTON = 0x100,
    SLEEP_S5 = 0x2000,
    RESET_CONTROL = 0xcf9,
    COM2 = 0x2f8,
    TIMER_VECTOR = 32,
    VECTORS = 64,
    FIRST_MEMORY = 0x100000,
};

static volatile u32 *const local_apic = (volatile u32 *)0xfee00000;
static struct { u16 low, selector, kind, high; } entries[VECTORS];
static volatile u32 due, elapsed;
static u32 units_per_ms, next_memory = FIRST_MEMORY;
extern u8 fault_entries[];

struct frame;

__attribute__((interrupt)) static void on_timer(struct frame *frame)
{
    (void)frame;
    if (++elapsed >= parameters.interrupts_per_tick) {
        elapsed = 0;
        due = 1;
    }
    out8(0x20, 0x20);
}

__attribute__((interrupt)) static void on_device(struct frame *frame)
{
    (void)frame;
    local_apic[0xb0 / 4] = 0;
}

__attribute__((interrupt)) static void on_nothing(struct frame *frame)
{
    (void)frame;
}

void report_fault(u32 vector, u32 address)
{
    print_field("BAD fault ", vector);
    print_field(" at ", address);
    print("\n");
    halt();
}

static void set_entry(u32 vector, u32 address)
{
    entries[vector].low = (u16)address;
    entries[vector].selector = 8;
    entries[vector].kind = 0x8e00;
    entries[vector].high = (u16)(address >> 16);
}

u32 now(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return low >> 10 | high << 22;
}

u32 microseconds(u32 units)
{
    return units / units_per_ms * 1000 + units % units_per_ms * 1000 / units_per_ms;
}

static void measure_clock(void)
{
    enum { MS = 4 };
    u32 from = now(), started = in32(PM_TIMER);
    while (((in32(PM_TIMER) - started) & 0xffffff) < MS * PM_TIMER_PER_MS)
        ;
    units_per_ms = (now() - from) / MS;
    if (!units_per_ms)
        complain("clock ", 0);
}

void start_machine(void)
{
    struct __attribute__((packed)) { u16 limit; u32 base; } pointer = {sizeof entries - 1, (u32)entries};
    for (u32 vector = 0; vector < VECTORS; vector++)
        set_entry(vector, vector < 32 ? (u32)fault_entries + vector * 16 : (u32)on_nothing);
    set_entry(TIMER_VECTOR, (u32)on_timer);
    set_entry(DEVICE_VECTOR, (u32)on_device);
    __asm__ volatile("lidt %0" ::"m"(pointer));
    measure_clock();
    local_apic[0xf0 / 4] |= 0x100; /* on; the timer still comes through it from the older controllers */

    out8(0x20, 0x11);
    out8(0xa0, 0x11);
    out8(0x21, TIMER_VECTOR);
    out8(0xa1, TIMER_VECTOR + 8);
    out8(0x21, 4);
    out8(0xa1, 2);
    out8(0x21, 1);
    out8(0xa1, 1);
    out8(0x21, 0xfe); /* the timer only */
    out8(0xa1, 0xff);
    out8(0x43, 0x34); /* PIT channel 0, rate generator */
    out8(0x40, (u8)parameters.pit_divisor);
    out8(0x40, (u8)(parameters.pit_divisor >> 8));
    out16(PM_ENABLE, POWER_BUTTON);
}

int take_tick(void)
{
    if (!due)
        return 0;
    due = 0;
    return 1;
}

/* What arrived since the caller looked wakes it at once: interrupts are on only from the halt on. */
void wait_interrupt(void)
{
    if (!due)
        __asm__ volatile("sti; hlt; cli" ::: "memory");
}

void *take_memory(u32 bytes)
{
    out8(0x70, 0x35); /* memory above 16 MiB in units of 64 KiB */
    u32 end = (u32)in8(0x71) << 24;
    out8(0x70, 0x34);
    end |= (u32)in8(0x71) << 16;
    end += 16 << 20;
    u32 address = next_memory;
    bytes = (bytes + PAGE - 1) & ~(u32)(PAGE - 1);
    if (bytes > end - address)
        complain("memory: no room for KiB ", (address - FIRST_MEMORY + bytes) >> 10);
    next_memory += bytes;
    u32 *words = (u32 *)address;
    for (u32 i = 0; i < bytes / 4; i++)
        words[i] = 0;
    return words;
}

int power_button(void)
{
    u16 status = in16(PM_STATUS);
    return status != 0xffff && status & POWER_BUTTON;
}

int letter(void)
{
    u8 line = in8(COM2 + 5);
    return line != 0xff && line & 1 ? in8(COM2) : 0;
}

void power_off(void)
{
    out16(PM_CONTROL, SLEEP_S5);
    halt();
}

void reset(void)
{
    out8(RESET_CONTROL, 2);
    out8(RESET_CONTROL, 6);
    halt();
}

void halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}
