/* Preloaded into a process: counts its changes to files under one folder, whoever makes them (Python, safetensors,
 * numpy), and at the n-th does something to it. Nothing happens until fault_arm is called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FAIL, SIGNAL };

static char root[PATH_MAX];
static int action = COUNT, value, trace = -1;
static long at, again, seen;

/* Of the process from now on: changes under `folder` are written to `trace_fd`, a line each; at the `n`-th KILL ends the
 * process (a write is half done), FAIL lets it and all that follow fail with errno `argument`, and SIGNAL raises the
 * signal `argument`, also `gap` changes later if that is not 0. */
void fault_arm(const char *folder, int what, long n, int argument, long gap, int trace_fd) {
  snprintf(root, sizeof root, "%s", folder);
  action = what, at = n, value = argument, again = gap, trace = trace_fd, seen = 0;
}

static int within(const char *path) {
  size_t length = strlen(root);
  return length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int of_handle(int handle, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
  return length > 0;
}

static void of_path(int folder, const char *name, char *path) {
  char base[PATH_MAX] = "";
  if (name[0] == '/') snprintf(path, PATH_MAX, "%s", name);
  else {
    if (folder != AT_FDCWD) of_handle(folder, base);
    else if (!getcwd(base, sizeof base)) base[0] = 0;
    size_t length = strlen(base);
    snprintf(path, PATH_MAX, "%s", base);
    snprintf(path + length, PATH_MAX - length, "/%s", name);
  }
}

/* What is to be done with this change: COUNT (let it happen), KILL or FAIL. */
static int met(const char *kind, const char *path) {
  if (!within(path)) return COUNT;
  long number = __sync_add_and_fetch(&seen, 1);
  if (trace >= 0) {
    char line[PATH_MAX + 32];
    int length = snprintf(line, sizeof line, "%s %s\n", kind, path);
    syscall(SYS_write, trace, line, length);
  }
  if (action == SIGNAL && (number == at || (again && number == at + again))) raise(value);
  if (action == FAIL && number >= at) return errno = value, FAIL;
  return action == KILL && number == at ? KILL : COUNT;
}

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); pause(); }

static int stopped(const char *kind, const char *path) {
  int what = met(kind, path);
  if (what == KILL) die();
  return what == FAIL;
}

static int stopped_at(const char *kind, int folder, const char *name) {
  char path[PATH_MAX];
  int before = errno;
  of_path(folder, name, path);
  errno = before;
  return stopped(kind, path);
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

/* A disk that is full still lets names go. */
static int frees_only(void) { return value == ENOSPC; }

#define WRITING(name, kind, parameters, arguments, half)          \
  ssize_t name parameters {                                       \
    char path[PATH_MAX];                                          \
    int before = errno, what = COUNT;                             \
    if (root[0] && of_handle(handle, path)) what = met(kind, path); \
    if (what == FAIL) return -1;                                  \
    errno = before;                                               \
    if (what == KILL) { half; die(); }                            \
    return REAL(name) arguments;                                  \
  }

WRITING(write, "write", (int handle, const void *data, size_t size), (handle, data, size),
        if (size > 1) REAL(write)(handle, data, size / 2))
WRITING(pwrite, "write", (int handle, const void *data, size_t size, off_t offset), (handle, data, size, offset),
        if (size > 1) REAL(pwrite)(handle, data, size / 2, offset))
WRITING(pwrite64, "write", (int handle, const void *data, size_t size, off64_t offset), (handle, data, size, offset),
        if (size > 1) REAL(pwrite64)(handle, data, size / 2, offset))
WRITING(writev, "write", (int handle, const struct iovec *parts, int count), (handle, parts, count),
        if (count > 1) REAL(writev)(handle, parts, count / 2))
WRITING(sendfile, "write", (int handle, int from, off_t *offset, size_t size), (handle, from, offset, size), )
WRITING(sendfile64, "write", (int handle, int from, off64_t *offset, size_t size), (handle, from, offset, size), )

#define ON_HANDLE(name, parameters, arguments)                                 \
  int name parameters {                                                        \
    char path[PATH_MAX];                                                       \
    if (root[0] && of_handle(handle, path) && stopped(#name, path)) return -1; \
    return REAL(name) arguments;                                               \
  }

ON_HANDLE(fsync, (int handle), (handle))
ON_HANDLE(fdatasync, (int handle), (handle))
ON_HANDLE(ftruncate, (int handle, off_t size), (handle, size))
ON_HANDLE(ftruncate64, (int handle, off64_t size), (handle, size))
ON_HANDLE(fchmod, (int handle, mode_t mode), (handle, mode))

#define ON_PATH(name, kind, folder, frees, parameters, arguments)                                              \
  int name parameters {                                                                                        \
    if (root[0] && stopped_at(kind, folder, path) && !((frees) && frees_only())) return -1;                    \
    return REAL(name) arguments;                                                                               \
  }

ON_PATH(mkdir, "mkdir", AT_FDCWD, 0, (const char *path, mode_t mode), (path, mode))
ON_PATH(mkdirat, "mkdir", folder, 0, (int folder, const char *path, mode_t mode), (folder, path, mode))
ON_PATH(unlink, "unlink", AT_FDCWD, 1, (const char *path), (path))
ON_PATH(unlinkat, "unlink", folder, 1, (int folder, const char *path, int flags), (folder, path, flags))
ON_PATH(rmdir, "rmdir", AT_FDCWD, 1, (const char *path), (path))
ON_PATH(chmod, "chmod", AT_FDCWD, 1, (const char *path, mode_t mode), (path, mode))
ON_PATH(rename, "rename", AT_FDCWD, 1, (const char *path, const char *to), (path, to))
ON_PATH(renameat, "rename", folder, 1, (int folder, const char *path, int other, const char *to),
        (folder, path, other, to))

#define OPENING(name, folder, parameters, arguments)                                \
  int name parameters {                                                             \
    mode_t mode = 0;                                                                \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                          \
      va_list rest;                                                                 \
      va_start(rest, flags);                                                        \
      mode = va_arg(rest, mode_t);                                                  \
      va_end(rest);                                                                 \
    }                                                                               \
    if (root[0] && flags & (O_CREAT | O_TRUNC) && stopped_at("open", folder, path)) return -1; \
    return REAL(name) arguments;                                                    \
  }

OPENING(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENING(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENING(openat, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
OPENING(openat64, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
