/* What the parts of the disk guest share; main.c says what the guest is. */
#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { PAGE = 4096, SECTOR = 512, SECTOR_WORDS = SECTOR / 4, MAX_DISKS = 16, MAX_DEPTH = 16 };

/* Where one disk is written, in slots of equal size that follow each other. 32 bytes. */
struct area {
    u64 first_sector;
    u32 slot_count;
    u32 slot_sectors;
    u32 write_credit;  /* slots a tick, 16.16 */
    u32 verify_credit; /* the same */
    u32 flush_ticks;   /* ticks between flushes; 0 for none */
    u16 depth;         /* slots at a time */
    u16 is_blank;      /* the area reads as zeroes at first */
};

struct parameters {
    char magic[4];
    u32 pit_divisor, interrupts_per_tick, seed;
    u32 memory_pages, memory_write_credit, memory_verify_credit;
    u32 latency_ticks; /* between two lines of latencies */
    u32 reserved[120];
    struct area areas[MAX_DISKS];
};

extern struct parameters parameters;

/* machine.c: the ports and chips of a PC. */
static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline u8 in8(u16 port) { u8 value; __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u16 in16(u16 port) { u16 value; __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u32 in32(u16 port) { u32 value; __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }

enum { DEVICE_VECTOR = 48 };
void start_machine(void);
int take_tick(void);          /* 1 once a period */
void wait_interrupt(void);    /* sleeps until a tick is due or a device has something to say */
u32 now(void);                /* units of 1024 TSC cycles, modulo 2^32 */
u32 microseconds(u32 units);  /* of a span of now() */
void *take_memory(u32 bytes); /* zeroed, page-aligned, never given back */
int power_button(void);
int letter(void);             /* one from COM2, or 0 */
void power_off(void) __attribute__((noreturn));
void reset(void) __attribute__((noreturn));
void halt(void) __attribute__((noreturn));

/* text.c: the console on COM1. */
void start_console(void);
void print(const char *text);
void print_number(u32 number);
void print_field(const char *name, u32 number);
void complain(const char *text, u32 number); /* BAD text number, and stands still */

/* pci.c */
u32 pci_read(u32 device, u32 at);
void pci_write(u32 device, u32 at, u32 value);
u32 pci_capability(u32 device, u8 id, u32 after);
volatile u8 *pci_bar(u32 device, u32 bar);
u32 pci_next(u32 after, u32 vendor, u32 first_id, u32 second_id); /* 0 at the end */
void pci_signal(u32 device, u8 vector);

/* virtio.c: a modern virtio-blk device with one queue. */
enum { BLK_READ = 0, BLK_WRITE = 1, BLK_FLUSH = 4, QUEUE_SIZE = 64 };
struct request {
    struct { u32 type, reserved; u64 sector; } header;
    volatile u8 status;
    u8 *buffer;
    u32 bytes;
};
struct block_device {
    u64 sector_count;
    volatile u8 *notify;
    struct queue *queue;
    u16 seen;
};
void open_block_device(struct block_device *device, u32 pci);
void submit(struct block_device *device, u32 index, struct request *request);
int take_completed(struct block_device *device); /* the index of a request that is done, or -1 */

/* pattern.c: the content of memory pages and of disk sectors. */
extern u32 bad_count;
void start_memory(void);
void tick_memory(void);
u32 memory_generation(void), memory_sweep(void);
void fill_sectors(u32 *words, u32 disk, u32 slot, u32 sequence, u32 sector_count);
void check_sectors(const u32 *words, u32 disk, u32 slot, u32 sequence, u32 sector_count);
u32 mixed(u32 a, u32 b);

/* disks.c */
void start_disks(void);
void poll_disks(void);
void tick_disks(int may_write, int shows_latencies);
int is_quiet(void);
#endif
