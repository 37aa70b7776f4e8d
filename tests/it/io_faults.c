/* Makes chosen calls on the vault's database files fail: preloaded into the program by io_faults.rs.
 *
 * FAULTS_PREFIX: the path that the names of the files begin with. FAULTS_CONTROL: a file of five numbers of 64 bits, by
 * which the test says what is to fail and reads what has happened. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { NONE, EIO_ANY, ENOSPC_GROWTH, EINTR_ANY, SHORT, EIO_SYNC };
enum call { READING, WRITING, GROWING, SYNCING, OPENING, MAPPING };

struct control {
    uint64_t kind;  /* what is to fail: enum kind */
    uint64_t at;    /* which of the calls that it concerns, from 1 */
    uint64_t until; /* the last of them that fails */
    uint64_t calls; /* how many there were */
    uint64_t hits;  /* how many failed */
};

static struct control *control;
static const char *prefix;
static char ours[65536];

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void start(void) {
    const char *file = getenv("FAULTS_CONTROL");
    prefix = getenv("FAULTS_PREFIX");
    if (!file || !prefix) return;
    int fd = REAL(open)(file, O_RDWR);
    if (fd < 0) return;
    void *shared = REAL(mmap)(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared != MAP_FAILED) control = shared;
    REAL(close)(fd);
}

static int concerns(enum kind kind, enum call call) {
    switch (kind) {
    case NONE: return 0;
    case EIO_ANY: return 1;
    case ENOSPC_GROWTH: return call == WRITING || call == GROWING || call == MAPPING;
    case EINTR_ANY: return call != MAPPING;
    case SHORT: return call == READING || call == WRITING;
    case EIO_SYNC: return call == SYNCING;
    }
    return 0;
}

/* Whether this call is to fail; sets errno. */
static int fails(enum call call) {
    if (!control) return 0;
    enum kind kind = (enum kind)__atomic_load_n(&control->kind, __ATOMIC_SEQ_CST);
    if (!concerns(kind, call)) return 0;
    uint64_t number = __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
    if (number < control->at || number > control->until) return 0;
    __atomic_add_fetch(&control->hits, 1, __ATOMIC_SEQ_CST);
    errno = kind == ENOSPC_GROWTH ? ENOSPC : kind == EINTR_ANY ? EINTR : EIO;
    return 1;
}

static int is_short(void) { return control->kind == SHORT; }

static int is_ours(int fd) { return fd >= 0 && fd < (int)sizeof ours && ours[fd]; }

static int opened(const char *path, int flags, mode_t mode, int directory) {
    int named = prefix && strncmp(path, prefix, strlen(prefix)) == 0;
    if (named && fails(OPENING)) return -1;
    int fd = REAL(openat)(directory, path, flags, mode);
    if (fd >= 0 && fd < (int)sizeof ours) ours[fd] = named;
    return fd;
}

static mode_t mode_of(int flags, va_list arguments) {
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return opened(path, flags, mode, AT_FDCWD);
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return opened(path, flags | O_LARGEFILE, mode, AT_FDCWD);
}

int close(int fd) {
    if (is_ours(fd)) ours[fd] = 0;
    return REAL(close)(fd);
}

/* What a call with a length does: fails, does half of it, or all. */
#define TRANSFER(name, kind, arguments, ...)                        \
    ssize_t name arguments {                                        \
        if (is_ours(fd) && fails(kind)) {                           \
            if (!is_short()) return -1;                             \
            length /= 2;                                            \
        }                                                           \
        return REAL(name)(__VA_ARGS__);                             \
    }

TRANSFER(read, READING, (int fd, void *bytes, size_t length), fd, bytes, length)
TRANSFER(pread, READING, (int fd, void *bytes, size_t length, off_t at), fd, bytes, length, at)
TRANSFER(pread64, READING, (int fd, void *bytes, size_t length, off64_t at), fd, bytes, length, at)
TRANSFER(write, WRITING, (int fd, const void *bytes, size_t length), fd, bytes, length)
TRANSFER(pwrite, WRITING, (int fd, const void *bytes, size_t length, off_t at), fd, bytes, length, at)
TRANSFER(pwrite64, WRITING, (int fd, const void *bytes, size_t length, off64_t at), fd, bytes, length, at)

#define PLAIN(name, kind, arguments, ...)                           \
    int name arguments {                                            \
        if (is_ours(fd) && fails(kind)) return -1;                  \
        return REAL(name)(__VA_ARGS__);                             \
    }

PLAIN(fsync, SYNCING, (int fd), fd)
PLAIN(fdatasync, SYNCING, (int fd), fd)
PLAIN(ftruncate, GROWING, (int fd, off_t length), fd, length)
PLAIN(ftruncate64, GROWING, (int fd, off64_t length), fd, length)

void *mmap(void *where, size_t length, int protection, int flags, int fd, off_t at) {
    if (is_ours(fd) && fails(MAPPING)) return MAP_FAILED;
    return REAL(mmap)(where, length, protection, flags, fd, at);
}

void *mmap64(void *where, size_t length, int protection, int flags, int fd, off64_t at) {
    if (is_ours(fd) && fails(MAPPING)) return MAP_FAILED;
    return REAL(mmap64)(where, length, protection, flags, fd, at);
}
