/* /init of the Linux test guest: changes and checks a pattern in memory and counts on the console.
 *
 * The scheme is the tick guest's (tick.S): every page holds its number, a generation and words that
 * follow from both; the writer checks before it rewrites, and a second cursor checks all pages over
 * and over. Lines:
 *
 *   ferry guest: counter 17 pattern ok gen 3 sweep 2      each period; `bad 5` in place of `ok`
 *   BAD page 9 expected 3 found 2 at 4
 *   ferry guest: power button                             then it powers off
 *
 * With /qemu-ga in its initrd it runs that on its first virtio line, and has eth0 at ferry.address. Called as
 * hwclock, by that agent, it does nothing.
 *
 * From the kernel command line: ferry.dirty_mib (memory with the pattern), ferry.rate_mib_s
 * (rewritten a second), ferry.verify_mib_s (checked a second), ferry.period_ms, ferry.seed.
 * Built by tests/guests/linux.py.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/input.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 4, REPORTED_BAD_PAGES = 16, INPUTS = 8 };

static char command_line[4096];
static uint32_t *memory;
static uint32_t page_count, seed;
static uint32_t cursor, generation = 2; /* pages below cursor have `generation`, others one less */
static uint32_t verify_cursor, sweep, bad_count;
static int inputs[INPUTS];

static double option(const char *name, double otherwise)
{
    char wanted[64];
    snprintf(wanted, sizeof wanted, " ferry.%s=", name);
    const char *found = strstr(command_line, wanted);
    return found ? strtod(found + strlen(wanted), NULL) : otherwise;
}

static uint32_t first_word(uint32_t page, uint32_t page_generation)
{
    uint32_t hash = page * 0x9e3779b1u ^ page_generation * 0x85ebca77u ^ seed;
    hash = (hash ^ hash >> 15) * 0x2c1b3c6du;
    return hash ^ hash >> 13;
}

static void write_page(uint32_t page, uint32_t page_generation)
{
    uint32_t *words = memory + (size_t)page * WORDS;
    uint32_t word = first_word(page, page_generation), step = word | 1;
    words[0] = page;
    words[1] = page_generation;
    for (int i = 2; i < WORDS; i++)
        words[i] = word += step;
}

static void check_page(uint32_t page, uint32_t expected)
{
    const volatile uint32_t *words = memory + (size_t)page * WORDS;
    uint32_t word = first_word(page, expected), step = word | 1;
    int wrong = words[0] != page ? 0 : words[1] != expected ? 1 : -1;
    for (int i = 2; wrong < 0 && i < WORDS; i++)
        if (words[i] != (word += step))
            wrong = i;
    if (wrong >= 0 && ++bad_count <= REPORTED_BAD_PAGES)
        printf("BAD page %u expected %u found %u at %d\n", page, expected, words[1], wrong * 4);
}

static void rewrite(uint32_t count)
{
    while (count--) {
        check_page(cursor, generation - 1);
        write_page(cursor, generation);
        if (++cursor == page_count) {
            cursor = 0;
            generation++;
        }
    }
}

static void verify(uint32_t count)
{
    while (count--) {
        check_page(verify_cursor, verify_cursor < cursor ? generation : generation - 1);
        if (++verify_cursor == page_count) {
            verify_cursor = 0;
            sweep++;
        }
    }
}

static void load_module(const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        syscall(SYS_finit_module, file, "", 0);
        close(file);
    }
}

static void set_address(void)
{
    const char *found = strstr(command_line, " ferry.address=");
    char text[16] = "";
    if (!found || sscanf(found, " ferry.address=%15[0-9.]", text) != 1)
        return;
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {.ifr_name = "eth0"};
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    address->sin_family = AF_INET;
    inet_pton(AF_INET, text, &address->sin_addr);
    if (ioctl(control, SIOCSIFADDR, &request))
        perror("SIOCSIFADDR");
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(control, SIOCSIFFLAGS, &request))
        perror("SIOCSIFFLAGS");
    close(control);
}

static void start_agent(void)
{
    static const char *const modules[] = {
        "/failover.ko", "/net_failover.ko", "/virtio_ring.ko", "/virtio.ko", "/virtio_pci_legacy_dev.ko",
        "/virtio_pci_modern_dev.ko", "/virtio_pci.ko", "/virtio_console.ko", "/virtio_net.ko",
    };
    char path[32] = "";
    if (access("/qemu-ga", X_OK))
        return;
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++)
        load_module(modules[i]);
    set_address();
    mkdir("/run", 0755);
    if (fork())
        return;
    for (int port = 1; access(path, F_OK); port = port % 31 + 1) { /* a line appears a moment after its module */
        snprintf(path, sizeof path, "/dev/vport0p%d", port);
        usleep(1000);
    }
    int null = open("/dev/null", O_RDWR);
    dup2(null, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    execl("/qemu-ga", "qemu-ga", "-m", "virtio-serial", "-p", path, "-t", "/run", (char *)NULL);
    _exit(1);
}

static void open_inputs(void)
{
    load_module("/button.ko");
    load_module("/evdev.ko");
    for (int i = 0; i < INPUTS; i++) {
        char path[32];
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        inputs[i] = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    }
}

static void obey_power_button(void)
{
    struct input_event event;
    for (int i = 0; i < INPUTS; i++)
        while (inputs[i] >= 0 && read(inputs[i], &event, sizeof event) == sizeof event)
            if (event.type == EV_KEY && event.code == KEY_POWER && event.value) {
                printf("ferry guest: power button\n");
                fflush(stdout);
                reboot(RB_POWER_OFF);
            }
}

static void read_command_line(void)
{
    command_line[0] = ' ';
    int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        if (read(file, command_line + 1, sizeof command_line - 2) < 0)
            perror("/proc/cmdline");
        close(file);
    }
}

static void add_ms(struct timespec *at, double ms)
{
    long long ns = at->tv_nsec + (long long)(ms * 1e6);
    at->tv_sec += ns / 1000000000;
    at->tv_nsec = ns % 1000000000;
}

static int is_past(const struct timespec *at)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > at->tv_sec || (now.tv_sec == at->tv_sec && now.tv_nsec > at->tv_nsec);
}

int main(int count, char **words)
{
    if (count > 1 && strstr(words[0], "hwclock"))
        return 0;
    mount("proc", "/proc", "proc", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    setvbuf(stdout, NULL, _IOFBF, BUFSIZ); /* a line is one write: kernel messages cannot split it */
    klogctl(8, NULL, 1);                   /* the console is ours, but for a panic */
    read_command_line();
    double megabytes = option("dirty_mib", 64), period_ms = option("period_ms", 100);
    double rewrite_pages = option("rate_mib_s", 4) * 256 * period_ms / 1000;
    double verify_pages = option("verify_mib_s", megabytes) * 256 * period_ms / 1000;
    seed = (uint32_t)option("seed", 1);
    page_count = (uint32_t)(megabytes * 256);
    memory = mmap(NULL, (size_t)page_count * PAGE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || page_count == 0 || period_ms < 1) {
        printf("BAD memory: no room for %g MiB, or a period of %g ms\n", megabytes, period_ms);
        fflush(stdout);
        pause();
    }
    printf("ferry guest: %g MiB\n", megabytes);
    open_inputs();
    start_agent();
    for (uint32_t page = 0; page < page_count; page++)
        write_page(page, 1);

    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    double rewrite_sum = 0, verify_sum = 0;
    for (uint32_t counter = 0;; counter++) {
        rewrite_sum += rewrite_pages;
        verify_sum += verify_pages;
        rewrite((uint32_t)rewrite_sum);
        verify((uint32_t)verify_sum);
        rewrite_sum -= (uint32_t)rewrite_sum;
        verify_sum -= (uint32_t)verify_sum;
        printf("ferry guest: counter %u pattern ", counter);
        printf(bad_count ? "bad %u" : "ok", bad_count);
        printf(" gen %u sweep %u\n", generation, sweep);
        fflush(stdout);
        obey_power_button();
        add_ms(&next, period_ms);
        if (is_past(&next))
            clock_gettime(CLOCK_MONOTONIC, &next); /* too much to do: slower, not for ever behind */
        else
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    }
}
