/* A modern virtio-blk device with one queue, signalled by MSI-X.
 *
 * Source: Virtual I/O Device (VIRTIO) Version 1.1, 2.6 (split virtqueues), 4.1 (PCI), 5.2 (block).
 */
#include "guest.h"

enum { VENDOR_CAPABILITY = 9, COMMON = 1, NOTIFY = 2, DEVICE = 4, NEXT = 1, WRITABLE = 2 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { FEATURE_FLUSH = 1 << 9, FEATURE_VERSION_1 = 1 /* of the second word */ };
enum { DESCRIPTORS = 3 };

struct descriptor { u64 address; u32 bytes; u16 flags, next; };
struct queue {
    struct descriptor descriptors[QUEUE_SIZE];
    struct { u16 flags; volatile u16 count; u16 ring[QUEUE_SIZE], unused; } available;
    struct { volatile u16 flags, count; struct { u32 index, bytes; } ring[QUEUE_SIZE]; } used;
};
struct common {
    u32 device_feature_select, device_feature, driver_feature_select, driver_feature;
    u16 configuration_vector, queue_count;
    u8 status, generation;
    u16 queue_select, queue_size, queue_vector, queue_enable, queue_notify_offset;
    u64 queue_descriptors, queue_available, queue_used;
};

static volatile u8 *region(u32 pci, u8 kind, u32 *at)
{
    for (*at = pci_capability(pci, VENDOR_CAPABILITY, 0); *at; *at = pci_capability(pci, VENDOR_CAPABILITY, *at))
        if ((u8)pci_read(pci, *at + 3) == kind)
            return pci_bar(pci, pci_read(pci, *at + 4) & 0xff) + pci_read(pci, *at + 8);
    complain("virtio: no region of kind ", kind);
    return 0;
}

void open_block_device(struct block_device *device, u32 pci)
{
    u32 at;
    volatile struct common *common = (volatile struct common *)region(pci, COMMON, &at);
    volatile u32 *capacity = (volatile u32 *)region(pci, DEVICE, &at);
    volatile u8 *notify = region(pci, NOTIFY, &at);
    struct queue *queue = device->queue = take_memory(sizeof *queue);

    common->status = 0;
    while (common->status)
        ;
    common->status = ACKNOWLEDGE | DRIVER;
    common->driver_feature_select = 0; /* without a flush QEMU would write through */
    common->driver_feature = FEATURE_FLUSH;
    common->driver_feature_select = 1;
    common->driver_feature = FEATURE_VERSION_1;
    common->status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    if (!(common->status & FEATURES_OK))
        complain("virtio: features of device ", pci >> 8);
    pci_signal(pci, DEVICE_VECTOR);
    common->queue_select = 0;
    common->queue_size = QUEUE_SIZE;
    common->queue_vector = 0;
    common->queue_descriptors = (u32)queue->descriptors;
    common->queue_available = (u32)&queue->available;
    common->queue_used = (u32)&queue->used;
    common->queue_enable = 1;
    common->status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    device->notify = notify + common->queue_notify_offset * pci_read(pci, at + 16);
    device->sector_count = capacity[0] | (u64)capacity[1] << 32;
}

void submit(struct block_device *device, u32 index, struct request *request)
{
    struct queue *queue = device->queue;
    struct descriptor *first = queue->descriptors + index * DESCRIPTORS;
    u16 number = (u16)(index * DESCRIPTORS);
    u16 status = (u16)(request->bytes ? number + 2 : number + 1);
    request->status = 0xff;
    first[0] = (struct descriptor){(u32)&request->header, sizeof request->header, NEXT, (u16)(number + 1)};
    if (request->bytes) {
        u16 flags = request->header.type == BLK_READ ? NEXT | WRITABLE : NEXT;
        first[1] = (struct descriptor){(u32)request->buffer, request->bytes, flags, status};
    }
    queue->descriptors[status] = (struct descriptor){(u32)&request->status, 1, WRITABLE, 0};
    queue->available.ring[queue->available.count % QUEUE_SIZE] = number;
    __sync_synchronize();
    queue->available.count++;
    __sync_synchronize();
    *(volatile u16 *)device->notify = 0;
}

int take_completed(struct block_device *device)
{
    struct queue *queue = device->queue;
    if (device->seen == queue->used.count)
        return -1;
    __sync_synchronize();
    return (int)(queue->used.ring[device->seen++ % QUEUE_SIZE].index / DESCRIPTORS);
}
