/* A wall clock that a test sets for some processes: CLOCK_REALTIME plus the double in the file that STEPPED_CLOCK names.
 *
 * Preloaded; the other clocks are the kernel's own. A time namespace cannot do this: it has no CLOCK_REALTIME.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile double *ahead_s;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("STEPPED_CLOCK");
    int descriptor = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (descriptor < 0)
        return;
    void *mapped = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, descriptor, 0);
    if (mapped != MAP_FAILED)
        ahead_s = mapped;
    close(descriptor);
}

static void add(struct timespec *instant, double by_s)
{
    double whole = floor(by_s);
    instant->tv_sec += (time_t)whole;
    instant->tv_nsec += (long)((by_s - whole) * 1e9);
    if (instant->tv_nsec >= 1000000000) {
        instant->tv_nsec -= 1000000000;
        instant->tv_sec++;
    }
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    long failed = syscall(SYS_clock_gettime, id, now);
    if (!failed && ahead_s && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        add(now, *ahead_s);
    return (int)failed;
}

/* The kernel waits by its own clock. QEMUs of Debian set no other clock for their conditions, gRPC does. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, const struct timespec *restrict end)
{
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec kernels = *end;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    if (ahead_s && getenv("STEPPED_WAITS"))
        add(&kernels, -*ahead_s);
    return real(condition, mutex, &kernels);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where)
{
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact))
        return (time_t)-1;
    if (where)
        *where = exact.tv_sec;
    return exact.tv_sec;
}
