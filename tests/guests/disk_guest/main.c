/* The disk guest: writes numbered blocks to its virtio-blk disks, checks them, and counts on COM1.
 *
 * Each disk has an area of equal slots (parameters, filled in by tests/guests/disk.py). Write number n of a disk goes to
 * a slot that follows from n, several at a time, at a rate; pattern.c says what it holds, disks.c how it is checked.
 * Memory carries the tick guest's pattern. Lines:
 *
 *   disk 0 sectors 131072                          once, at boot
 *   tick 17 gen 3 sweep 2 ok                       each period; `bad 5` in place of `ok` after failures
 *   disk 0 issued 40 wrote 37 flushed 20 sweep 1 slowest 840 errors 0
 *        all writes up to 37 are acknowledged; those up to 20 were before a flush that is acknowledged too; in us, the
 *        slowest write since the last line, or the age of one that is not acknowledged
 *   disk 0 latencies 36:12 37:30                   of all writes since boot: 12 in the bucket that begins at 2^(36/4) us
 *   disk 0 write error 1                           the device's status
 *   BAD disk 0 slot 9 sector 3 expected 17 found 12 at 20
 *   BAD page 9 expected 3 found 2 at 4, BAD fault 13 at 32510 as in tick.S
 *
 * The power button, and the letter `o` on COM2, let it finish its writes, flush, say so and power off; `q` lets it finish,
 * flush and be quiet, `g` go on; `r` resets at once.
 */
#include "guest.h"

static void obey(int *may_write, int *is_leaving)
{
    int order = power_button() ? 'o' : letter();
    if (order == 'r')
        reset();
    if (order == 'g')
        *may_write = 1;
    if (order == 'q' || order == 'o')
        *may_write = 0;
    if (order == 'o' && !*is_leaving) {
        *is_leaving = 1;
        print("ferry disk: power button\n");
    }
}

static void say_tick(u32 counter)
{
    print_field("tick ", counter);
    print_field(" gen ", memory_generation());
    print_field(" sweep ", memory_sweep());
    if (bad_count)
        print_field(" bad ", bad_count);
    else
        print(" ok");
    print("\n");
}

void guest_main(void)
{
    int may_write = 1, is_leaving = 0, was_quiet = 0;
    start_console();
    start_machine();
    start_disks();
    start_memory();
    for (u32 counter = 0;;) {
        poll_disks();
        if (!take_tick()) {
            wait_interrupt();
            continue;
        }
        obey(&may_write, &is_leaving);
        tick_memory();
        say_tick(counter++);
        int quiet = !may_write && is_quiet();
        tick_disks(may_write, quiet != was_quiet || (parameters.latency_ticks && counter % parameters.latency_ticks == 0));
        if (quiet && !was_quiet)
            print("ferry disk: quiet\n");
        was_quiet = quiet;
        if (quiet && is_leaving)
            power_off();
    }
}
