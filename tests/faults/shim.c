/* Makes system calls of the daemon fail or do less, as a page shared with the test says (LD_PRELOAD).
 *
 * Words of the page: what is to happen; from COUNTS on, how often it did.  Chances are out of 256. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SHORT, AGAIN, INTERRUPTED, NO_SPACE, NO_DESCRIPTORS, REALTIME, MONOTONIC, COUNTS = 16 };

static volatile int64_t *control;
static __thread uint32_t state;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *page;

    if (fd < 0)
        return;
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED)
        control = page;
    close(fd);
}

static int happens(int what)
{
    if (!control || !control[what])
        return 0;
    if (!state)
        state = (uint32_t)getpid() * 2654435761u | 1;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    if ((int64_t)(state >> 8 & 255) >= control[what])
        return 0;
    __atomic_fetch_add(&control[COUNTS + what], 1, __ATOMIC_RELAXED);
    return 1;
}

static int fails(void)
{
    if (happens(AGAIN)) {
        errno = EAGAIN;
        return 1;
    }
    if (happens(INTERRUPTED)) {
        errno = EINTR;
        return 1;
    }
    return 0;
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout)
{
    static int (*real)(int, struct mmsghdr *, unsigned int, int, struct timespec *);
    size_t length = messages->msg_hdr.msg_iov->iov_len;
    int done;

    if (!real)
        real = dlsym(RTLD_NEXT, "recvmmsg");
    if (fails())
        return -1;
    if (length > 1 && happens(SHORT))
        messages->msg_hdr.msg_iov->iov_len = 1;
    done = real(fd, messages, count, flags, timeout);
    messages->msg_hdr.msg_iov->iov_len = length;
    return done;
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
    static int (*real)(int, struct mmsghdr *, unsigned int, int);
    size_t length = messages->msg_hdr.msg_iov->iov_len, pieces = messages->msg_hdr.msg_iovlen;
    int done;

    if (!real)
        real = dlsym(RTLD_NEXT, "sendmmsg");
    if (fails())
        return -1;
    if (length > 1 && happens(SHORT))
        messages->msg_hdr.msg_iov->iov_len = messages->msg_hdr.msg_iovlen = 1;
    done = real(fd, messages, count, flags);
    messages->msg_hdr.msg_iov->iov_len = length;
    messages->msg_hdr.msg_iovlen = pieces;
    return done;
}

int epoll_wait(int fd, struct epoll_event *events, int most, int timeout)
{
    static int (*real)(int, struct epoll_event *, int, int);

    if (!real)
        real = dlsym(RTLD_NEXT, "epoll_wait");
    if (happens(INTERRUPTED)) {
        errno = EINTR;
        return -1;
    }
    return real(fd, events, most, timeout);
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    static int (*real)(int, struct sockaddr *, socklen_t *, int);

    if (!real)
        real = dlsym(RTLD_NEXT, "accept4");
    if (happens(NO_DESCRIPTORS)) {
        errno = EMFILE;
        return -1;
    }
    return real(fd, address, length, flags);
}

static int is_file(int fd)
{
    struct stat found;

    return fstat(fd, &found) == 0 && S_ISREG(found.st_mode);
}

ssize_t write(int fd, const void *data, size_t count)
{
    static ssize_t (*real)(int, const void *, size_t);

    if (!real)
        real = dlsym(RTLD_NEXT, "write");
    if (control && control[NO_SPACE] && fd > 2 && is_file(fd) && happens(NO_SPACE)) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, data, count);
}

static int allocate(const char *name, int fd, off64_t offset, off64_t length)
{
    int (*real)(int, off64_t, off64_t) = dlsym(RTLD_NEXT, name);

    return happens(NO_SPACE) ? ENOSPC : real(fd, offset, length);
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    return allocate("posix_fallocate", fd, offset, length);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    return allocate("posix_fallocate64", fd, offset, length);
}

int clock_gettime(clockid_t which, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    int done;

    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    done = real(which, now);
    if (control && which == CLOCK_REALTIME)
        now->tv_sec += control[REALTIME];
    if (control && which == CLOCK_MONOTONIC)
        now->tv_sec += control[MONOTONIC];
    return done;
}
