/* Preloaded into a tool: makes one call of one function fail, counted over all
 * threads of the process (strace counts for each thread on its own). Only calls
 * that go through the C library: those of Rust's own library do.
 *
 *   OH_FAIL_CALL   fsync, fdatasync, pwrite64, pread64, ftruncate64, fchmod, unlink,
 *                  or stdout: a write to it
 *   OH_FAIL_NTH    which call of it, from 1
 *   OH_FAIL_ERRNO  the error; 0 kills the process instead, with SIGKILL
 *   OH_FAIL_FILE   if set: counts only calls for files whose name ends so
 *   OH_FAIL_LOG    a file that gets a line for each call: "fsync PATH = 0"
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long calls;

static int ends_with(const char *text, const char *end) {
    size_t len = strlen(text), n = strlen(end);
    return len >= n && strcmp(text + len - n, end) == 0;
}

/* Whether this very call is to fail; then errno is set. */
static int fails(const char *call, const char *path) {
    const char *wanted = getenv("OH_FAIL_CALL"), *file = getenv("OH_FAIL_FILE");
    const char *nth = getenv("OH_FAIL_NTH"), *error = getenv("OH_FAIL_ERRNO");
    const char *log = getenv("OH_FAIL_LOG");
    int failure = 0, is_hit = 0;
    if (wanted && nth && error && strcmp(call, wanted) == 0 && (!file || ends_with(path, file))) {
        is_hit = atomic_fetch_add(&calls, 1) + 1 == atol(nth);
        failure = is_hit ? atoi(error) : 0;
    }
    if (log) {
        char line[4200];
        int len = snprintf(line, sizeof line, "%s %s = %d%s\n", call, path, failure, is_hit ? " !" : "");
        int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (fd >= 0) {
            if (write(fd, line, (size_t)len) < 0) abort();
            close(fd);
        }
    }
    if (is_hit && failure == 0) kill(getpid(), SIGKILL);
    errno = failure;
    return is_hit;
}

static int fd_fails(const char *call, int fd) {
    char name[32], path[4096];
    int before = errno;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(name, path, sizeof path - 1);
    path[len > 0 ? len : 0] = 0;
    if (fails(call, path)) return 1;
    errno = before;
    return 0;
}

#define WRAP(type, name, parameters, arguments, test)                        \
    type name parameters {                                                   \
        static type (*real) parameters;                                      \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                \
        return test ? (type)-1 : real arguments;                             \
    }

WRAP(int, fsync, (int fd), (fd), fd_fails("fsync", fd))
WRAP(int, fdatasync, (int fd), (fd), fd_fails("fdatasync", fd))
WRAP(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t at), (fd, b, n, at), fd_fails("pwrite64", fd))
WRAP(ssize_t, pread64, (int fd, void *b, size_t n, off64_t at), (fd, b, n, at), fd_fails("pread64", fd))
WRAP(int, ftruncate64, (int fd, off64_t len), (fd, len), fd_fails("ftruncate64", fd))
WRAP(int, fchmod, (int fd, mode_t mode), (fd, mode), fd_fails("fchmod", fd))
WRAP(int, unlink, (const char *path), (path), fails("unlink", path))
WRAP(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n), fd == 1 && fd_fails("stdout", fd))
