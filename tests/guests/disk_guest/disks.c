/* Writes and checks of all disks, several slots of each at a time.
 *
 * A slot is read and compared with its last acknowledged write before it is written anew, and a cursor reads all
 * slots over and over. A request that fails is tried again at the next tick: its number counts as written only then.
 */
#include "guest.h"

enum state { FREE, READS, CHECKS, WRITES, READS_AGAIN, CHECKS_AGAIN, WRITES_AGAIN };
enum { AGAIN = READS_AGAIN - READS, LANES = MAX_DEPTH + 1, FLUSH = LANES, LATENCY_BUCKETS = 4 * 28 };
static const u32 UNKNOWN = 0xffffffff;

struct lane {
    enum state state; /* READS a slot that it will write, CHECKS one that it will not */
    u32 slot, sequence, started;
    struct request request;
};

struct disk {
    struct block_device device;
    const struct area *area;
    u32 index;
    u32 *last; /* the number of each slot's last acknowledged write */
    struct lane lanes[LANES]; /* the first for checks only, the others for writes */
    struct lane *end;
    struct request flush;
    u32 is_flushing, flush_covers, flush_due, flush_started;
    u32 issued, flushed, sweep, error_count, slowest_us;
    u32 cursor, write_sum, verify_sum;
    u32 latencies[LATENCY_BUCKETS]; /* 4 n + q: writes from 2^n (1 + q/4) us on */
};

static struct disk *disks[MAX_DISKS];
static u32 disk_count;

static void open_disk(u32 pci, u32 index)
{
    struct disk *disk = disks[index] = take_memory(sizeof *disk);
    const struct area *area = disk->area = parameters.areas + index;
    disk->index = index;
    open_block_device(&disk->device, pci);
    print_field("disk ", index);
    print_field(" sectors ", (u32)disk->device.sector_count);
    print("\n");
    if (area->first_sector + (u64)area->slot_count * area->slot_sectors > disk->device.sector_count)
        complain("area: it is larger than disk ", index);
    disk->last = take_memory(area->slot_count * 4);
    for (u32 slot = 0; slot < area->slot_count && !area->is_blank; slot++)
        disk->last[slot] = UNKNOWN;
    disk->flush_due = area->flush_ticks;
    disk->flush.header.type = BLK_FLUSH;
    disk->end = disk->lanes + (area->slot_count ? area->depth + 1 : 0);
    for (struct lane *lane = disk->lanes; lane < disk->end; lane++) {
        lane->request.bytes = area->slot_sectors * SECTOR;
        lane->request.buffer = take_memory(area->slot_sectors * SECTOR);
    }
}

void start_disks(void)
{
    u32 pci = 0;
    while (disk_count < MAX_DISKS && (pci = pci_next(pci, 0x1af4, 0x1001, 0x1042)))
        open_disk(pci, disk_count++);
}

static void start(struct disk *disk, struct lane *lane, enum state state)
{
    struct request *request = &lane->request;
    lane->state = state;
    request->header.type = state == WRITES ? BLK_WRITE : BLK_READ;
    request->header.sector = disk->area->first_sector + (u64)lane->slot * disk->area->slot_sectors;
    if (state == WRITES)
        fill_sectors((u32 *)request->buffer, disk->index, lane->slot, lane->sequence, disk->area->slot_sectors);
    submit(&disk->device, (u32)(lane - disk->lanes), request);
}

/* One of these lanes for a new slot, or none while all are taken or this slot is on its way. */
static struct lane *free_lane(struct disk *disk, u32 slot, struct lane *from, struct lane *end)
{
    struct lane *found = 0;
    for (struct lane *lane = disk->lanes; lane < disk->end; lane++)
        if (lane->state != FREE && lane->slot == slot)
            return 0;
    for (struct lane *lane = from; lane < end && !found; lane++)
        if (lane->state == FREE)
            found = lane;
    if (found) {
        found->slot = slot;
        found->started = now();
    }
    return found;
}

static void note_latency(struct disk *disk, u32 us)
{
    u32 octave = us ? 31 - (u32)__builtin_clz(us) : 0;
    u32 quarter = (octave >= 2 ? us >> (octave - 2) : us << (2 - octave)) & 3;
    u32 bucket = octave * 4 + quarter;
    disk->latencies[bucket < LATENCY_BUCKETS ? bucket : LATENCY_BUCKETS - 1]++;
    if (us > disk->slowest_us)
        disk->slowest_us = us;
}

static void note_error(struct disk *disk, const char *what, u32 status)
{
    if (++disk->error_count > 16)
        return;
    print_field("disk ", disk->index);
    print_field(what, status);
    print("\n");
}

static void complete(struct disk *disk, struct lane *lane)
{
    u32 expected = disk->last[lane->slot];
    if (lane->request.status) {
        note_error(disk, lane->state == WRITES ? " write error " : " read error ", lane->request.status);
        lane->state += AGAIN;
        return;
    }
    if (lane->state != WRITES) {
        if (expected != UNKNOWN)
            check_sectors((u32 *)lane->request.buffer, disk->index, lane->slot, expected, disk->area->slot_sectors);
        if (lane->state == CHECKS) {
            lane->state = FREE;
        } else {
            lane->started = now();
            start(disk, lane, WRITES);
        }
        return;
    }
    note_latency(disk, microseconds(now() - lane->started));
    disk->last[lane->slot] = lane->sequence;
    lane->state = FREE;
}

static void complete_flush(struct disk *disk)
{
    disk->is_flushing = 0;
    if (disk->flush.status) {
        note_error(disk, " flush error ", disk->flush.status);
        disk->flush_due = 1;
        return;
    }
    if (disk->flush_covers > disk->flushed)
        disk->flushed = disk->flush_covers;
}

/* Up to which number all writes are acknowledged. */
static u32 written(const struct disk *disk)
{
    u32 lowest = disk->issued + 1;
    for (const struct lane *lane = disk->lanes + 1; lane < disk->end; lane++)
        if (lane->state != FREE && lane->sequence < lowest)
            lowest = lane->sequence;
    return lowest - 1;
}

static void start_flush(struct disk *disk)
{
    disk->is_flushing = 1;
    disk->flush_covers = written(disk);
    disk->flush_due = disk->area->flush_ticks;
    disk->flush_started = now();
    submit(&disk->device, FLUSH, &disk->flush);
}

static void start_checks(struct disk *disk)
{
    for (; disk->verify_sum >> 16; disk->verify_sum -= 1 << 16) {
        struct lane *lane = free_lane(disk, disk->cursor, disk->lanes, disk->lanes + 1);
        if (!lane)
            break;
        start(disk, lane, CHECKS);
        if (++disk->cursor == disk->area->slot_count) {
            disk->cursor = 0;
            disk->sweep++;
        }
    }
}

static void start_writes(struct disk *disk)
{
    for (; disk->write_sum >> 16; disk->write_sum -= 1 << 16) {
        u32 sequence = disk->issued + 1;
        struct lane *lane = free_lane(disk, mixed(disk->index, sequence) % disk->area->slot_count, disk->lanes + 1, disk->end);
        if (!lane)
            break;
        lane->sequence = disk->issued = sequence;
        start(disk, lane, READS);
    }
}

void poll_disks(void)
{
    for (u32 i = 0; i < disk_count; i++)
        for (int index; (index = take_completed(&disks[i]->device)) >= 0;)
            if (index == FLUSH) {
                complete_flush(disks[i]);
            } else {
                complete(disks[i], disks[i]->lanes + index);
                start_writes(disks[i]);
                start_checks(disks[i]);
            }
}

/* What a slow disk left undone is done later, but not for ever: at most as much as may be on its way. */
static void add_credit(struct disk *disk, u32 *sum, u32 credit)
{
    u32 most = ((u32)disk->area->depth << 16) + credit;
    *sum = *sum + credit > most ? most : *sum + credit;
}

static void oldest_counts(struct disk *disk)
{
    for (struct lane *lane = disk->lanes; lane < disk->end; lane++) {
        u32 us = lane->state == FREE ? 0 : microseconds(now() - lane->started);
        if (us > disk->slowest_us)
            disk->slowest_us = us;
    }
}

static void report(struct disk *disk)
{
    oldest_counts(disk);
    print_field("disk ", disk->index);
    print_field(" issued ", disk->issued);
    print_field(" wrote ", written(disk));
    print_field(" flushed ", disk->flushed);
    print_field(" sweep ", disk->sweep);
    print_field(" slowest ", disk->slowest_us);
    print_field(" errors ", disk->error_count);
    print("\n");
    disk->slowest_us = 0;
}

static void report_latencies(const struct disk *disk)
{
    print_field("disk ", disk->index);
    print(" latencies");
    for (u32 bucket = 0; bucket < LATENCY_BUCKETS; bucket++)
        if (disk->latencies[bucket]) {
            print_field(" ", bucket);
            print_field(":", disk->latencies[bucket]);
        }
    print("\n");
}

static void tick_disk(struct disk *disk, int may_write)
{
    for (struct lane *lane = disk->lanes; lane < disk->end; lane++)
        if (lane->state >= READS_AGAIN)
            start(disk, lane, lane->state - AGAIN);
    if (may_write) {
        add_credit(disk, &disk->verify_sum, disk->area->verify_credit);
        add_credit(disk, &disk->write_sum, disk->area->write_credit);
        start_writes(disk);
        start_checks(disk);
    } else {
        disk->write_sum = disk->verify_sum = 0;
        disk->flush_due = 1; /* until all is flushed; see is_quiet */
    }
    if (disk->flush_due && !disk->is_flushing && disk->flushed != written(disk) && !--disk->flush_due)
        start_flush(disk);
}

void tick_disks(int may_write, int shows_latencies)
{
    for (u32 i = 0; i < disk_count; i++)
        if (disks[i]->area->slot_count) {
            tick_disk(disks[i], may_write);
            report(disks[i]);
            if (shows_latencies)
                report_latencies(disks[i]);
        }
}

int is_quiet(void)
{
    for (u32 i = 0; i < disk_count; i++) {
        const struct disk *disk = disks[i];
        for (const struct lane *lane = disk->lanes; lane < disk->end; lane++)
            if (lane->state != FREE)
                return 0;
        if (disk->is_flushing || disk->flushed != disk->issued)
            return 0;
    }
    return 1;
}
