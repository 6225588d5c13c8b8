// Checks for the cases: each ends the program with the line that failed.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>

#define CHECK(what)                                                            \
  do {                                                                         \
    if (!(what)) {                                                             \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);               \
      exit(1);                                                                 \
    }                                                                          \
  } while (0)

#define OK(call) FAILS(0, call)

#define FAILS(want, call)                                                      \
  do {                                                                         \
    int got_ = (call);                                                         \
    if (got_ != (want)) {                                                      \
      fprintf(stderr, "%s:%d: %s: errno %d, want %d\n", __FILE__, __LINE__,    \
              #call, got_, (want));                                            \
      exit(1);                                                                 \
    }                                                                          \
  } while (0)

// ROOT is the descriptor of "/", READONLY that of "/ro".
#define ROOT 3
#define READONLY 4

// DIR_BASE and DIR_INHERITING are what most programs ask for with a directory.
#define DIR_BASE 0x7ffffe18ull
#define DIR_INHERITING 0x0fffffffull

struct test {
  const char *name;
  void (*run)(void);
};

extern const struct test raw_cases[], path_cases[], libc_cases[];

static inline __wasi_fd_t must_open(__wasi_fd_t dir, const char *path,
                                    int oflags, __wasi_rights_t rights,
                                    int fdflags) {
  __wasi_fd_t fd = 0;
  OK(__wasi_path_open(dir, 0, path, oflags, rights, rights, fdflags, &fd));
  CHECK(fd > 2);
  return fd;
}

static inline int try_open(__wasi_fd_t dir, const char *path, int oflags) {
  __wasi_fd_t fd;
  int e = __wasi_path_open(dir, 0, path, oflags, 0, 0, 0, &fd);
  if (e == 0)
    OK(__wasi_fd_close(fd));
  return e;
}

static inline void create(__wasi_fd_t dir, const char *path) {
  OK(try_open(dir, path, __WASI_OFLAGS_CREAT));
}

// scratch makes an empty directory and opens it.
static inline __wasi_fd_t scratch(const char *name) {
  OK(__wasi_path_create_directory(ROOT, name));
  __wasi_fd_t fd;
  OK(__wasi_path_open(ROOT, 0, name, __WASI_OFLAGS_DIRECTORY, DIR_BASE,
                      DIR_INHERITING, 0, &fd));
  return fd;
}

static inline size_t write_all(__wasi_fd_t fd, const void *p, size_t n) {
  __wasi_ciovec_t v = {p, n};
  __wasi_size_t done;
  OK(__wasi_fd_write(fd, &v, 1, &done));
  CHECK(done == n);
  return done;
}
