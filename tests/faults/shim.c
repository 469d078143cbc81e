/* A C library whose calls fail: the Nth one of a kind that concerns files of a folder, once it is armed.
 *
 * For LD_PRELOAD on Linux. `fault_arm` is called through ctypes in the process that is to fail; the marker is made
 * when it does. An error of 0 kills the process at that call instead, before the call is carried out.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static char kind_armed[32], folder[PATH_MAX];
static int error_armed;
static atomic_int left;
static char mark[PATH_MAX];

void fault_arm(const char *kind, int nth, int error, const char *under, const char *marker) {
    snprintf(kind_armed, sizeof kind_armed, "%s", kind);
    snprintf(folder, sizeof folder, "%s", under);
    snprintf(mark, sizeof mark, "%s", marker);
    error_armed = error;
    atomic_store(&left, nth);
}

static int concerns_path(const char *path) { return path && strncmp(path, folder, strlen(folder)) == 0; }

static int concerns_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return concerns_path(path);
}

/* Whether this call is the one; the marker tells whoever sent us that it has come. */
static int fails(const char *kind, int concerned) {
    if (!*kind_armed || !concerned || strcmp(kind, kind_armed) != 0) return 0;
    if (atomic_fetch_sub(&left, 1) != 1) return 0;
    *kind_armed = 0;
    const int fd = ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open"))(mark, O_CREAT | O_WRONLY, 0600);
    if (fd >= 0) ((int (*)(int))dlsym(RTLD_NEXT, "close"))(fd);
    if (error_armed == 0) kill(getpid(), SIGKILL);
    errno = error_armed;
    return 1;
}

#define NEXT(name, type, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

#define OPENS(name)                                                                         \
    int name(const char *path, int flags, ...) {                                            \
        va_list rest;                                                                       \
        va_start(rest, flags);                                                              \
        const int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;             \
        va_end(rest);                                                                       \
        if (fails("open", concerns_path(path))) return -1;                                  \
        return NEXT(name, int, const char *, int, ...)(path, flags, mode);                  \
    }
OPENS(open)
OPENS(open64)

int close(int fd) {
    if (fails("close", concerns_fd(fd))) {
        const int error = errno;
        NEXT(close, int, int)(fd); /* as Linux does: the number is free again */
        errno = error;
        return -1;
    }
    return NEXT(close, int, int)(fd);
}

ssize_t write(int fd, const void *data, size_t n) {
    if (fails("write", concerns_fd(fd))) return -1;
    return NEXT(write, ssize_t, int, const void *, size_t)(fd, data, n);
}

#define PWRITES(name)                                                                       \
    ssize_t name(int fd, const void *data, size_t n, off_t at) {                            \
        if (fails("pwrite", concerns_fd(fd))) return -1;                                    \
        return NEXT(name, ssize_t, int, const void *, size_t, off_t)(fd, data, n, at);      \
    }
PWRITES(pwrite)
PWRITES(pwrite64)

#define TRUNCATES(name)                                                                     \
    int name(int fd, off_t size) {                                                          \
        if (fails("ftruncate", concerns_fd(fd))) return -1;                                 \
        return NEXT(name, int, int, off_t)(fd, size);                                       \
    }
TRUNCATES(ftruncate)
TRUNCATES(ftruncate64)

#define ALLOCATES(name)                                                                     \
    int name(int fd, off_t at, off_t size) {                                                \
        if (fails("fallocate", concerns_fd(fd))) return errno;                              \
        return NEXT(name, int, int, off_t, off_t)(fd, at, size);                            \
    }
ALLOCATES(posix_fallocate)
ALLOCATES(posix_fallocate64)

int fsync(int fd) {
    if (fails("fsync", concerns_fd(fd))) return -1;
    return NEXT(fsync, int, int)(fd);
}

int rename(const char *from, const char *to) {
    if (fails("rename", concerns_path(from) || concerns_path(to))) return -1;
    return NEXT(rename, int, const char *, const char *)(from, to);
}

int link(const char *from, const char *to) {
    if (fails("link", concerns_path(to))) return -1;
    return NEXT(link, int, const char *, const char *)(from, to);
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    if (fails("link", concerns_path(to))) return -1;
    return NEXT(linkat, int, int, const char *, int, const char *, int)(a, from, b, to, flags);
}

int symlink(const char *to, const char *path) {
    if (fails("symlink", concerns_path(path))) return -1;
    return NEXT(symlink, int, const char *, const char *)(to, path);
}

int rmdir(const char *path) {
    if (fails("rmdir", concerns_path(path))) return -1;
    return NEXT(rmdir, int, const char *)(path);
}

int unlink(const char *path) {
    if (fails("unlink", concerns_path(path))) return -1;
    return NEXT(unlink, int, const char *)(path);
}

int mkdir(const char *path, mode_t mode) {
    if (fails("mkdir", concerns_path(path))) return -1;
    return NEXT(mkdir, int, const char *, mode_t)(path, mode);
}

#define MAPS(name)                                                                          \
    void *name(void *at, size_t n, int protection, int flags, int fd, off_t offset) {       \
        if (fd >= 0 && fails("mmap", 1)) return MAP_FAILED;                                 \
        return NEXT(name, void *, void *, size_t, int, int, int, off_t)(at, n, protection, flags, fd, offset); \
    }
MAPS(mmap)
MAPS(mmap64)
