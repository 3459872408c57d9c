/* The content of memory pages, as in tick.S, and of disk sectors.
 *
 * A sector holds "FDSK", the seed, its disk, slot, index in the slot, the number of the write that brought it, and
 * words that follow from these. So a sector that is older, elsewhere or torn is told from the one that must be there.
 */
#include "guest.h"

enum { MAGIC = 0x4b534446, HEADER_WORDS = 6, REPORTED = 16, PAGE_WORDS = PAGE / 4 };

u32 bad_count;
static u32 *memory;
static u32 cursor, generation = 2; /* pages below cursor have `generation`, others one less */
static u32 verify_cursor, sweep, write_sum, verify_sum;

u32 mixed(u32 a, u32 b)
{
    u32 hash = a * 0x9e3779b1u ^ b * 0x85ebca77u ^ parameters.seed;
    hash = (hash ^ hash >> 15) * 0x2c1b3c6du;
    return hash ^ hash >> 13;
}

static void write_page(u32 page, u32 page_generation)
{
    u32 *words = memory + page * PAGE_WORDS;
    u32 word = mixed(page, page_generation), step = word | 1;
    words[0] = page;
    words[1] = page_generation;
    for (u32 i = 2; i < PAGE_WORDS; i++)
        words[i] = word += step;
}

static void check_page(u32 page, u32 expected)
{
    const volatile u32 *words = memory + page * PAGE_WORDS;
    u32 word = mixed(page, expected), step = word | 1, wrong = PAGE_WORDS;
    if (words[0] != page || words[1] != expected)
        wrong = 0;
    for (u32 i = 2; wrong == PAGE_WORDS && i < PAGE_WORDS; i++)
        if (words[i] != (word += step))
            wrong = i;
    if (wrong == PAGE_WORDS || ++bad_count > REPORTED)
        return;
    print_field("BAD page ", page);
    print_field(" expected ", expected);
    print_field(" found ", words[1]);
    print_field(" at ", wrong * 4);
    print("\n");
}

void start_memory(void)
{
    memory = take_memory(parameters.memory_pages * PAGE);
    for (u32 page = 0; page < parameters.memory_pages; page++)
        write_page(page, 1);
}

void tick_memory(void)
{
    if (!parameters.memory_pages)
        return;
    for (write_sum += parameters.memory_write_credit; write_sum >> 16; write_sum -= 1 << 16) {
        check_page(cursor, generation - 1);
        write_page(cursor, generation);
        if (++cursor == parameters.memory_pages) {
            cursor = 0;
            generation++;
        }
    }
    for (verify_sum += parameters.memory_verify_credit; verify_sum >> 16; verify_sum -= 1 << 16) {
        check_page(verify_cursor, verify_cursor < cursor ? generation : generation - 1);
        if (++verify_cursor == parameters.memory_pages) {
            verify_cursor = 0;
            sweep++;
        }
    }
}

u32 memory_generation(void) { return generation; }
u32 memory_sweep(void) { return sweep; }

static void fill_sector(u32 *words, u32 disk, u32 slot, u32 sequence, u32 index)
{
    u32 word = mixed(mixed(disk, slot), mixed(sequence, index)), step = word | 1;
    words[0] = MAGIC;
    words[1] = parameters.seed;
    words[2] = disk;
    words[3] = slot;
    words[4] = index;
    words[5] = sequence;
    for (u32 i = HEADER_WORDS; i < SECTOR_WORDS; i++)
        words[i] = word += step;
}

void fill_sectors(u32 *words, u32 disk, u32 slot, u32 sequence, u32 sector_count)
{
    for (u32 index = 0; index < sector_count; index++)
        fill_sector(words + index * SECTOR_WORDS, disk, slot, sequence, index);
}

/* Sequence 0 was never written: zeroes. */
void check_sectors(const u32 *words, u32 disk, u32 slot, u32 sequence, u32 sector_count)
{
    u32 expected[SECTOR_WORDS] = {0};
    for (u32 index = 0; index < sector_count; index++, words += SECTOR_WORDS) {
        u32 at = 0;
        if (sequence)
            fill_sector(expected, disk, slot, sequence, index);
        while (at < SECTOR_WORDS && words[at] == expected[at])
            at++;
        if (at == SECTOR_WORDS)
            continue;
        if (++bad_count <= REPORTED) {
            print_field("BAD disk ", disk);
            print_field(" slot ", slot);
            print_field(" sector ", index);
            print_field(" expected ", sequence);
            print_field(" found ", words[5]);
            print_field(" at ", at * 4);
            print("\n");
        }
        return;
    }
}
