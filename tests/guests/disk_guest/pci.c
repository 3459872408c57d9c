/* Finding devices on all PCI buses, their capabilities, and MSI-X. */
#include "guest.h"

enum { ENABLED = 1u << 31, MSIX = 0x11, BRIDGE = 1, SUBORDINATE = 0x18, MSIX_ENABLE = 1u << 31 };

/* `device` is bus << 16 | slot << 11 | function << 8, as the address port wants it. */
u32 pci_read(u32 device, u32 at)
{
    out32(0xcf8, ENABLED | device | (at & 0xfc));
    return in32(0xcfc) >> (at & 3) * 8;
}

void pci_write(u32 device, u32 at, u32 value)
{
    out32(0xcf8, ENABLED | device | at);
    out32(0xcfc, value);
}

u32 pci_capability(u32 device, u8 id, u32 after)
{
    u32 at = pci_read(device, after ? after + 1 : 0x34) & 0xff;
    while (at && (u8)pci_read(device, at) != id)
        at = pci_read(device, at + 1) & 0xff;
    return at;
}

volatile u8 *pci_bar(u32 device, u32 bar)
{
    u32 low = pci_read(device, 0x10 + 4 * bar);
    if (low & 1 || ((low & 6) == 4 && pci_read(device, 0x14 + 4 * bar)))
        complain("PCI region of device ", device >> 8);
    return (volatile u8 *)(low & ~15u);
}

/* Buses that no bridge leads to are not asked: each question costs an exit. */
u32 pci_next(u32 after, u32 vendor, u32 first_id, u32 second_id)
{
    static u32 last_bus;
    for (u32 device = after ? after + 0x100 : 0; device >> 16 <= last_bus; device += 0x100) {
        if (device & 0x700 && !(pci_read(device & ~0x700u, 0x0e) & 0x80)) {
            device |= 0x700; /* one function only */
            continue;
        }
        u32 id = pci_read(device, 0);
        if ((u16)id == 0xffff)
            continue;
        if ((pci_read(device, 0x0e) & 0x7f) == BRIDGE) {
            u32 subordinate = pci_read(device, SUBORDINATE) >> 16 & 0xff;
            last_bus = subordinate > last_bus ? subordinate : last_bus;
        }
        if ((u16)id == vendor && (id >> 16 == first_id || id >> 16 == second_id)) {
            pci_write(device, 4, pci_read(device, 4) | 6); /* memory and bus master */
            return device;
        }
    }
    return 0;
}

void pci_signal(u32 device, u8 vector)
{
    u32 at = pci_capability(device, MSIX, 0);
    if (!at)
        complain("no MSI-X: device ", device >> 8);
    u32 table = pci_read(device, at + 4);
    volatile u32 *entry = (volatile u32 *)(pci_bar(device, table & 7) + (table & ~7u));
    entry[0] = 0xfee00000;
    entry[1] = 0;
    entry[2] = vector;
    entry[3] = 0; /* not masked */
    pci_write(device, at, pci_read(device, at) | MSIX_ENABLE);
}
