/* Makes chosen calls on the vault's database files fail: preloaded into the program by io_faults.rs.
 *
 * FAULTS_PREFIX: the path that the names of the files begin with. FAULTS_CONTROL: a file of five numbers of 64 bits, by
 * which the test says what is to fail and reads what has happened. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
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

/* What is on the disk, as far as a program can rely on it: beside each file a copy that has what was written before a
 * sync that went well. After one that failed, what was written is not there, and never will be: the kernel takes it for
 * written (as ext4 and XFS do). */

enum { MOST = 1 << 16 };

static struct written {
    char *file;
    off_t at;
    size_t length;
} unsynced[MOST];
static int unsynced_count;
static char *names[sizeof ours];
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static int copy_of(const char *file, int flags) {
    char name[4096];
    snprintf(name, sizeof name, "%s.durable", file);
    return REAL(openat)(AT_FDCWD, name, flags, 0600);
}

static void transfer(int from, int to, off_t at, size_t length) {
    char bytes[65536];
    while (length) {
        ssize_t got = REAL(pread)(from, bytes, length < sizeof bytes ? length : sizeof bytes, at);
        if (got <= 0 || REAL(pwrite)(to, bytes, got, at) != got) return;
        at += got;
        length -= got;
    }
}

/* What a file holds when it is opened for the first time is on the disk. */
static void begin_copy(const char *file) {
    int copy = copy_of(file, O_WRONLY | O_CREAT | O_EXCL);
    if (copy < 0) return;
    int fd = REAL(openat)(AT_FDCWD, file, O_RDONLY);
    transfer(fd, copy, 0, SIZE_MAX >> 1);
    REAL(close)(fd);
    REAL(close)(copy);
}

static void note(int fd, off_t at, ssize_t length) {
    if (!names[fd] || length <= 0) return;
    pthread_mutex_lock(&turn);
    if (unsynced_count == MOST) abort();
    unsynced[unsynced_count++] = (struct written){names[fd], at, length};
    pthread_mutex_unlock(&turn);
}

static void synced(int fd, int well) {
    if (!names[fd]) return;
    pthread_mutex_lock(&turn);
    int source = REAL(openat)(AT_FDCWD, names[fd], O_RDONLY), copy = copy_of(names[fd], O_WRONLY), kept = 0;
    for (int n = 0; n < unsynced_count; n++) {
        struct written *one = &unsynced[n];
        if (strcmp(one->file, names[fd])) unsynced[kept++] = *one;
        else if (well) transfer(source, copy, one->at, one->length);
    }
    unsynced_count = kept;
    REAL(close)(source);
    REAL(close)(copy);
    pthread_mutex_unlock(&turn);
}

static void cut(int fd, off_t length) {
    if (!names[fd]) return;
    int copy = copy_of(names[fd], O_WRONLY);
    REAL(ftruncate)(copy, length);
    REAL(close)(copy);
}

static int opened(const char *path, int flags, mode_t mode, int directory) {
    int named = prefix && strncmp(path, prefix, strlen(prefix)) == 0;
    if (named && fails(OPENING)) return -1;
    int fd = REAL(openat)(directory, path, flags, mode);
    if (fd < 0 || fd >= (int)sizeof ours) return fd;
    ours[fd] = named;
    names[fd] = NULL;
    if (named && control && !strstr(path, "-shm")) {
        names[fd] = strdup(path);
        begin_copy(path);
    }
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

static ssize_t written(int fd, const void *bytes, size_t length, off_t at) {
    if (fails(WRITING)) {
        if (!is_short()) return -1;
        length /= 2;
    }
    ssize_t done = REAL(pwrite)(fd, bytes, length, at);
    note(fd, at, done);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    if (!is_ours(fd)) return REAL(write)(fd, bytes, length);
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = written(fd, bytes, length, at);
    if (done > 0) lseek(fd, at + done, SEEK_SET);
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    return is_ours(fd) ? written(fd, bytes, length, at) : REAL(pwrite)(fd, bytes, length, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) { return pwrite(fd, bytes, length, at); }

static int made_durable(int fd) {
    int failed = fails(SYNCING), reason = errno;
    synced(fd, !failed);
    errno = reason;
    return failed ? -1 : 0;
}

int fsync(int fd) { return is_ours(fd) ? made_durable(fd) : REAL(fsync)(fd); }

int fdatasync(int fd) { return is_ours(fd) ? made_durable(fd) : REAL(fdatasync)(fd); }

int ftruncate(int fd, off_t length) {
    if (is_ours(fd) && fails(GROWING)) return -1;
    int done = REAL(ftruncate)(fd, length);
    if (is_ours(fd) && done == 0) cut(fd, length);
    return done;
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

int unlink(const char *path) {
    if (control && prefix && strncmp(path, prefix, strlen(prefix)) == 0) {
        char name[4096];
        snprintf(name, sizeof name, "%s.durable", path);
        REAL(unlink)(name);
    }
    return REAL(unlink)(path);
}

void *mmap(void *where, size_t length, int protection, int flags, int fd, off_t at) {
    if (is_ours(fd) && fails(MAPPING)) return MAP_FAILED;
    return REAL(mmap)(where, length, protection, flags, fd, at);
}

void *mmap64(void *where, size_t length, int protection, int flags, int fd, off64_t at) {
    if (is_ours(fd) && fails(MAPPING)) return MAP_FAILED;
    return REAL(mmap64)(where, length, protection, flags, fd, at);
}
