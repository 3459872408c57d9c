/* The console on COM1. */
#include "guest.h"

enum { COM1 = 0x3f8 };

void start_console(void)
{
    out8(COM1 + 1, 0); /* no interrupts */
    out8(COM1 + 3, 0x80);
    out8(COM1, 1); /* 115200 */
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 3); /* 8N1 */
}

static void put(char character)
{
    while (!(in8(COM1 + 5) & 0x20))
        ;
    out8(COM1, (u8)character);
}

void print(const char *text)
{
    while (*text)
        put(*text++);
}

void print_number(u32 number)
{
    char digits[12];
    int at = sizeof digits - 1;
    digits[at] = 0;
    do
        digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    print(digits + at);
}

void print_field(const char *name, u32 number)
{
    print(name);
    print_number(number);
}

void complain(const char *text, u32 number)
{
    print("BAD ");
    print_field(text, number);
    print("\n");
    halt();
}
