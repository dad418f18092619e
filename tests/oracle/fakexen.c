/*
 * fakexen.c: an LD_PRELOAD shim under which Debian's unmodified xenstored and oxenstored run without Xen.
 *
 * For: comparing this project's daemon with both of them on any Linux machine.
 * Guarantees: stands in for the calls that Xen 4.17's daemons make to libxenctrl, libxenevtchn and libxengnttab;
 *   touches files below $FAKEXEN_DIR and $FAKEXEN_RUN only.
 * Does not model: masking and coalescing of events, validity of grant references and frame numbers.
 *
 * $FAKEXEN_DIR (default ./xen) is the simulated Xen directory:
 *   domains/<N>     domain N exists; the text inside is empty (running), "shutdown", "crashed" or "dying".
 *                   Domain 0 always exists.
 *   dom<N>.ring     the ring page that the daemon maps for domain N
 *   dom0.port       domain 0's event channel port as decimal text
 *   evtchn.sock     datagram socket: the daemon's event channel device. 8-byte messages, two u32, little-endian:
 *                     {domid, remote port}   a guest kicks the daemon
 *                     {0xffffffff, virq}     a virtual interrupt is raised (3: VIRQ_DOM_EXC)
 *   evtchn.tab      the table of local ports, shared memory so that it survives exec
 *   g<domid>.<remote port>.sock   datagram socket of a guest; it gets {domid, remote port} when notified
 * $FAKEXEN_RUN, if set, replaces the daemons' compiled-in /var/run/xenstored, /var/run/xen and /var/log/xen.
 * $FAKEXEN_LOG, if set, names a file in which the simulated calls are logged.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xenevtchn.h>
#include <xengnttab.h>

#define PAGE_BYTES 4096
#define PATH_BYTES 512
#define PORT_COUNT 4096
#define VIRQ_SENDER 0xffffffffu

enum port_state { PORT_FREE, PORT_INTERDOMAIN, PORT_VIRQ };

struct port {
    uint32_t state, domid, remote, unused;
};

static struct port *ports;
static int event_fd = -1;
static long handles[3]; /* the addresses serve as opaque library handles */
static xc_error last_error;

static const char *xen_dir(void)
{
    const char *dir = getenv("FAKEXEN_DIR");

    return dir ? dir : "./xen";
}

static void trace(const char *format, ...)
{
    static FILE *file;
    static int tried;
    va_list args;

    if (!tried) {
        const char *path = getenv("FAKEXEN_LOG");

        tried = 1;
        if (path)
            file = fopen(path, "ae");
    }
    if (!file)
        return;
    va_start(args, format);
    vfprintf(file, format, args);
    va_end(args);
    fputc('\n', file);
    fflush(file);
}

/* ---- domains ---- */

/* 1 if the domain exists, with its state's text in `text`; 0 if not. */
static int domain_state(uint32_t domid, char *text, size_t size)
{
    char path[PATH_BYTES];
    ssize_t got;
    int fd;

    text[0] = 0;
    snprintf(path, sizeof(path), "%s/domains/%u", xen_dir(), domid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return domid == 0;
    got = read(fd, text, size - 1);
    close(fd);
    text[got > 0 ? got : 0] = 0;
    return 1;
}

/* The lowest existing domid that is at least `first`, or -1. */
static long next_domain(uint32_t first)
{
    char path[PATH_BYTES], text[64];
    struct dirent *entry;
    long best = -1;
    DIR *dir;

    if (domain_state(first, text, sizeof(text)))
        return first;
    snprintf(path, sizeof(path), "%s/domains", xen_dir());
    dir = opendir(path);
    if (!dir)
        return -1;
    while ((entry = readdir(dir))) {
        char *end;
        long domid = strtol(entry->d_name, &end, 10);

        if (end == entry->d_name || *end || domid < (long)first)
            continue;
        if (best < 0 || domid < best)
            best = domid;
    }
    closedir(dir);
    return best;
}

static int fail(int error, const char *what)
{
    last_error.code = XC_INTERNAL_ERROR;
    snprintf(last_error.message, sizeof(last_error.message), "%s: %s", what, strerror(error));
    errno = error;
    return -1;
}

xc_interface *xc_interface_open(xentoollog_logger *logger, xentoollog_logger *dombuild, unsigned flags)
{
    return (xc_interface *)&handles[0];
}

int xc_interface_close(xc_interface *xch)
{
    return 0;
}

const xc_error *xc_get_last_error(xc_interface *xch)
{
    return &last_error;
}

const char *xc_error_code_to_desc(int code)
{
    return code ? "simulated error" : "no error";
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned int max, xc_dominfo_t *info)
{
    unsigned int count = 0;
    long domid = first;
    char text[64];

    while (count < max && (domid = next_domain(domid)) >= 0) {
        domain_state(domid, text, sizeof(text));
        memset(&info[count], 0, sizeof(info[count]));
        info[count].domid = domid;
        info[count].running = 1;
        info[count].dying = !!strstr(text, "dying");
        info[count].shutdown = !!strstr(text, "shutdown");
        info[count].crashed = !!strstr(text, "crashed");
        count++;
        domid++;
    }
    trace("xc_domain_getinfo first=%u max=%u: %u", first, max, count);
    return count ? (int)count : fail(ESRCH, "getinfo");
}

int xc_domain_getinfolist(xc_interface *xch, uint32_t first, unsigned int max, xc_domaininfo_t *info)
{
    unsigned int count = 0;
    long domid = first;
    char text[64];

    while (count < max && (domid = next_domain(domid)) >= 0) {
        domain_state(domid, text, sizeof(text));
        memset(&info[count], 0, sizeof(info[count]));
        info[count].domain = domid;
        info[count].flags = XEN_DOMINF_running;
        if (strstr(text, "dying"))
            info[count].flags |= XEN_DOMINF_dying;
        if (strstr(text, "shutdown"))
            info[count].flags |= XEN_DOMINF_shutdown;
        if (strstr(text, "crashed"))
            info[count].flags |= XEN_DOMINF_shutdown | (3u << XEN_DOMINF_shutdownshift);
        count++;
        domid++;
    }
    trace("xc_domain_getinfolist first=%u max=%u: %u", first, max, count);
    return count;
}

/* ---- ring pages ---- */

static void *map_ring(uint32_t domid, size_t bytes)
{
    char path[PATH_BYTES], text[64];
    void *page;
    int fd;

    if (!domain_state(domid, text, sizeof(text))) {
        fail(EINVAL, "no such domain");
        return NULL;
    }
    snprintf(path, sizeof(path), "%s/dom%u.ring", xen_dir(), domid);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        fail(EINVAL, "no ring page");
        return NULL;
    }
    page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED) {
        fail(EINVAL, "mmap");
        return NULL;
    }
    trace("map ring of %u at %p", domid, page);
    return page;
}

xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned flags)
{
    return (xengnttab_handle *)&handles[1];
}

int xengnttab_close(xengnttab_handle *xgt)
{
    return 0;
}

int xengnttab_set_max_grants(xengnttab_handle *xgt, uint32_t count)
{
    return 0;
}

void *xengnttab_map_grant_ref(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot)
{
    return map_ring(domid, PAGE_BYTES);
}

int xengnttab_unmap(xengnttab_handle *xgt, void *start, uint32_t count)
{
    trace("unmap %p", start);
    return munmap(start, (size_t)count * PAGE_BYTES);
}

void *xc_map_foreign_range(xc_interface *xch, uint32_t domid, int size, int prot, unsigned long frame)
{
    return map_ring(domid, size);
}

/* ---- event channels ---- */

static int open_port_table(int fresh)
{
    char path[PATH_BYTES];
    void *table;
    int fd;

    if (ports)
        return 0;
    snprintf(path, sizeof(path), "%s/evtchn.tab", xen_dir());
    if (fresh)
        unlink(path);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    if (ftruncate(fd, PORT_COUNT * sizeof(*ports))) {
        close(fd);
        return -1;
    }
    table = mmap(NULL, PORT_COUNT * sizeof(*ports), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (table == MAP_FAILED)
        return -1;
    ports = table;
    return 0;
}

static int real_bind(int fd, const struct sockaddr *address, socklen_t length);

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned flags)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int bytes = 1 << 20;

    if (open_port_table(1))
        return NULL;
    event_fd = socket(AF_UNIX, SOCK_DGRAM | ((flags & XENEVTCHN_NO_CLOEXEC) ? 0 : SOCK_CLOEXEC), 0);
    if (event_fd < 0)
        return NULL;
    setsockopt(event_fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/evtchn.sock", xen_dir());
    unlink(address.sun_path);
    if (real_bind(event_fd, (struct sockaddr *)&address, sizeof(address))) {
        close(event_fd);
        return NULL;
    }
    return (xenevtchn_handle *)&handles[2];
}

/* After a live update: the descriptor and the port table were kept across exec. */
xenevtchn_handle *xenevtchn_fdopen(struct xentoollog_logger *logger, int fd, unsigned flags)
{
    if (open_port_table(0))
        return NULL;
    event_fd = fd;
    return (xenevtchn_handle *)&handles[2];
}

int xenevtchn_close(xenevtchn_handle *xce)
{
    if (event_fd >= 0)
        close(event_fd);
    event_fd = -1;
    return 0;
}

int xenevtchn_fd(xenevtchn_handle *xce)
{
    return event_fd;
}

static int bind_port(enum port_state state, uint32_t domid, uint32_t remote)
{
    for (int port = 1; port < PORT_COUNT; port++)
        if (ports[port].state == PORT_FREE) {
            ports[port] = (struct port){state, domid, remote, 0};
            trace("port %d bound: state %d, domain %u, remote %u", port, state, domid, remote);
            return port;
        }
    errno = ENOSPC;
    return -1;
}

xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, evtchn_port_t remote)
{
    char text[64];

    if (!domain_state(domid, text, sizeof(text))) {
        errno = ESRCH;
        return -1;
    }
    return bind_port(PORT_INTERDOMAIN, domid, remote);
}

xenevtchn_port_or_error_t xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq)
{
    return bind_port(PORT_VIRQ, 0, virq);
}

int xenevtchn_unbind(xenevtchn_handle *xce, evtchn_port_t port)
{
    if (port == 0 || port >= PORT_COUNT || ports[port].state == PORT_FREE) {
        errno = EINVAL;
        return -1;
    }
    trace("port %u unbound", port);
    ports[port].state = PORT_FREE;
    return 0;
}

int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    uint32_t message[2];

    if (port == 0 || port >= PORT_COUNT || ports[port].state != PORT_INTERDOMAIN) {
        errno = EINVAL;
        return -1;
    }
    message[0] = ports[port].domid;
    message[1] = ports[port].remote;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/g%u.%u.sock", xen_dir(), message[0], message[1]);
    /* A full queue means that an event is pending already; without a listener nobody cares. */
    (void)!sendto(event_fd, message, sizeof(message), MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&address,
                  sizeof(address));
    trace("port %u notified (domain %u)", port, message[0]);
    return 0;
}

static int find_port(uint32_t sender, uint32_t remote)
{
    enum port_state state = sender == VIRQ_SENDER ? PORT_VIRQ : PORT_INTERDOMAIN;

    for (int port = 1; port < PORT_COUNT; port++)
        if (ports[port].state == state && ports[port].remote == remote &&
            (state == PORT_VIRQ || ports[port].domid == sender))
            return port;
    return PORT_COUNT - 1; /* unknown sender: a port that nobody binds, so a spurious event */
}

xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce)
{
    uint32_t message[2];
    ssize_t got = recv(event_fd, message, sizeof(message), 0);
    int port;

    if (got < 0)
        return -1;
    port = got == sizeof(message) ? find_port(message[0], message[1]) : PORT_COUNT - 1;
    trace("port %d pending", port);
    return port;
}

int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port)
{
    return 0;
}

/* ---- paths that the daemons have compiled in ---- */

/* What follows `prefix` in `path` if the prefix ends at a component, else NULL. */
static const char *below(const char *path, const char *prefix)
{
    size_t length = strlen(prefix);

    if (strncmp(path, prefix, length) || (path[length] && path[length] != '/'))
        return NULL;
    return path + length;
}

static const char *redirect(const char *path, char *buffer)
{
    const char *run = getenv("FAKEXEN_RUN"), *rest;

    if (!path)
        return path;
    if (!strcmp(path, "/proc/xen/xsd_kva") || !strcmp(path, "/dev/xen/xsd_kva"))
        snprintf(buffer, PATH_BYTES, "%s/dom0.ring", xen_dir());
    else if (!strcmp(path, "/proc/xen/xsd_port") || !strcmp(path, "/dev/xen/xsd_port"))
        snprintf(buffer, PATH_BYTES, "%s/dom0.port", xen_dir());
    else if (run && ((rest = below(path, "/var/run/xenstored")) || (rest = below(path, "/var/run/xen")) ||
                     (rest = below(path, "/var/log/xen"))))
        snprintf(buffer, PATH_BYTES, "%s%s", run, rest);
    else
        return path;
    return buffer;
}

#define REAL(name)                                                                                                     \
    static __typeof__(&name) real;                                                                                     \
    if (!real)                                                                                                         \
    real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static mode_t mode_of(int flags, va_list args)
{
    int needed = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE;

    return needed ? va_arg(args, mode_t) : 0;
}

int open(const char *path, int flags, ...)
{
    char buffer[PATH_BYTES];
    va_list args;
    mode_t mode;
    REAL(open);

    va_start(args, flags);
    mode = mode_of(flags, args);
    va_end(args);
    return real(redirect(path, buffer), flags, mode);
}

int open64(const char *path, int flags, ...)
{
    char buffer[PATH_BYTES];
    va_list args;
    mode_t mode;
    REAL(open64);

    va_start(args, flags);
    mode = mode_of(flags, args);
    va_end(args);
    return real(redirect(path, buffer), flags, mode);
}

int unlink(const char *path)
{
    char buffer[PATH_BYTES];
    REAL(unlink);

    return real(redirect(path, buffer));
}

int chmod(const char *path, mode_t mode)
{
    char buffer[PATH_BYTES];
    REAL(chmod);

    return real(redirect(path, buffer), mode);
}

int mkdir(const char *path, mode_t mode)
{
    char buffer[PATH_BYTES];
    REAL(mkdir);

    return real(redirect(path, buffer), mode);
}

int access(const char *path, int mode)
{
    char buffer[PATH_BYTES];
    REAL(access);

    return real(redirect(path, buffer), mode);
}

int rename(const char *from, const char *to)
{
    char buffer_from[PATH_BYTES], buffer_to[PATH_BYTES];
    REAL(rename);

    return real(redirect(from, buffer_from), redirect(to, buffer_to));
}

int stat64(const char *path, struct stat64 *status)
{
    char buffer[PATH_BYTES];
    REAL(stat64);

    return real(redirect(path, buffer), status);
}

static int real_bind(int fd, const struct sockaddr *address, socklen_t length)
{
    REAL(bind);

    return real(fd, address, length);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    struct sockaddr_un moved = {.sun_family = AF_UNIX};
    char buffer[PATH_BYTES];

    if (!address || address->sa_family != AF_UNIX ||
        redirect(((const struct sockaddr_un *)address)->sun_path, buffer) != buffer)
        return real_bind(fd, address, length);
    if (strlen(buffer) >= sizeof(moved.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(moved.sun_path, buffer, strlen(buffer));
    return real_bind(fd, (struct sockaddr *)&moved, sizeof(moved));
}

/* oxenstored insists on raising RLIMIT_NOFILE to fs.nr_open, and gives up if it may not: clamp at the hard limit. */
int setrlimit(__rlimit_resource_t resource, const struct rlimit *wanted)
{
    struct rlimit limit;
    REAL(setrlimit);

    if (real(resource, wanted) == 0)
        return 0;
    if (errno != EPERM || getrlimit(resource, &limit))
        return -1;
    limit.rlim_cur = wanted->rlim_cur < limit.rlim_max ? wanted->rlim_cur : limit.rlim_max;
    trace("setrlimit %d clamped to %lu", (int)resource, (unsigned long)limit.rlim_cur);
    return real(resource, &limit);
}
