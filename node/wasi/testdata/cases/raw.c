// Cases of descriptors, clocks, random numbers and polls, by direct calls.
#include "cases.h"

static void big_random_buf(void) {
  static uint8_t buf[64 << 10];
  OK(__wasi_random_get(buf, sizeof buf));
  int set = 0;
  for (size_t i = 0; i < sizeof buf; i++)
    set += buf[i] != 0;
  CHECK(set > 60000);
  OK(__wasi_random_get(buf, 0));
}

static void clocks(void) {
  __wasi_timestamp_t r, a, b;
  for (int id = 0; id < 4; id++) {
    OK(__wasi_clock_res_get(id, &r));
    CHECK(r > 0 && r <= 1000000000);
    OK(__wasi_clock_time_get(id, 1, &a));
    OK(__wasi_clock_time_get(id, 0, &b));
    CHECK(id == 0 || a <= b);
  }
  FAILS(__WASI_ERRNO_INVAL, __wasi_clock_time_get(9, 0, &a));
}

static void close_preopen(void) {
  __wasi_fdstat_t st;
  OK(__wasi_fd_close(READONLY));
  FAILS(__WASI_ERRNO_BADF, __wasi_fd_fdstat_get(READONLY, &st));
  OK(__wasi_fd_fdstat_get(ROOT, &st));
  CHECK(st.fs_filetype == __WASI_FILETYPE_DIRECTORY && st.fs_flags == 0);
  FAILS(__WASI_ERRNO_BADF, __wasi_fd_close(READONLY));
}

static void dir_fd_op_failures(void) {
  __wasi_filestat_t fs;
  OK(__wasi_fd_filestat_get(ROOT, &fs));
  CHECK(fs.filetype == __WASI_FILETYPE_DIRECTORY);
  __wasi_prestat_t ps;
  OK(__wasi_fd_prestat_get(ROOT, &ps));
  CHECK(ps.tag == 0 && ps.u.dir.pr_name_len == 1);
  uint8_t name[16] = {0};
  FAILS(__WASI_ERRNO_NAMETOOLONG, __wasi_fd_prestat_dir_name(ROOT, name, 0));
  OK(__wasi_fd_prestat_dir_name(ROOT, name, 2));
  CHECK(name[0] == '/' && name[1] == 0);
  FAILS(__WASI_ERRNO_BADF, __wasi_fd_prestat_get(1, &ps));

  char buf[128];
  __wasi_iovec_t in = {(uint8_t *)buf, sizeof buf};
  __wasi_ciovec_t out = {(uint8_t *)buf, sizeof buf};
  __wasi_size_t n;
  __wasi_filesize_t at;
  FAILS(__WASI_ERRNO_ISDIR, __wasi_fd_read(ROOT, &in, 1, &n));
  FAILS(__WASI_ERRNO_ISDIR, __wasi_fd_pread(ROOT, &in, 1, 0, &n));
  FAILS(__WASI_ERRNO_ISDIR, __wasi_fd_write(ROOT, &out, 1, &n));
  FAILS(__WASI_ERRNO_ISDIR, __wasi_fd_pwrite(ROOT, &out, 1, 0, &n));
  for (int whence = 0; whence < 3; whence++)
    FAILS(__WASI_ERRNO_ISDIR, __wasi_fd_seek(ROOT, 0, whence, &at));
  FAILS(__WASI_ERRNO_ISDIR, __wasi_fd_tell(ROOT, &at));
  FAILS(__WASI_ERRNO_ISDIR, __wasi_fd_allocate(ROOT, 0, 1));
  FAILS(__WASI_ERRNO_ISDIR, __wasi_fd_filestat_set_size(ROOT, 0));
}

static void directory_seek(void) {
  OK(__wasi_path_create_directory(ROOT, "seek"));
  __wasi_fd_t fd = must_open(ROOT, "seek", __WASI_OFLAGS_DIRECTORY,
                             __WASI_RIGHTS_FD_SEEK, 0);
  __wasi_filesize_t at;
  FAILS(__WASI_ERRNO_ISDIR, __wasi_fd_seek(fd, 0, __WASI_WHENCE_CUR, &at));
  __wasi_fdstat_t st;
  OK(__wasi_fd_fdstat_get(fd, &st));
  CHECK(st.fs_filetype == __WASI_FILETYPE_DIRECTORY);
  CHECK((st.fs_rights_base & __WASI_RIGHTS_FD_SEEK) == 0);
  OK(__wasi_fd_close(fd));
  OK(__wasi_path_remove_directory(ROOT, "seek"));
}

static void fd_advise(void) {
  __wasi_fd_t fd =
      must_open(ROOT, "advise", __WASI_OFLAGS_CREAT, DIR_INHERITING, 0);
  __wasi_filestat_t fs;
  OK(__wasi_fd_filestat_get(fd, &fs));
  CHECK(fs.size == 0);
  OK(__wasi_fd_filestat_set_size(fd, 100));
  OK(__wasi_fd_advise(fd, 10, 50, __WASI_ADVICE_NORMAL));
  FAILS(__WASI_ERRNO_INVAL, __wasi_fd_advise(fd, 10, 50, 77));
  OK(__wasi_fd_filestat_get(fd, &fs));
  CHECK(fs.size == 100);
  OK(__wasi_fd_allocate(fd, 100, 100));
  OK(__wasi_fd_filestat_get(fd, &fs));
  CHECK(fs.size == 200);
}

static void file_allocate(void) {
  __wasi_fd_t fd = must_open(ROOT, "file", __WASI_OFLAGS_CREAT,
                             DIR_INHERITING, 0);
  __wasi_filestat_t fs;
  OK(__wasi_fd_allocate(fd, 0, 100));
  OK(__wasi_fd_allocate(fd, 10, 10)); // does not cut
  OK(__wasi_fd_filestat_get(fd, &fs));
  CHECK(fs.size == 100);
  OK(__wasi_fd_allocate(fd, 90, 20));
  OK(__wasi_fd_filestat_get(fd, &fs));
  CHECK(fs.size == 110);
  FAILS(__WASI_ERRNO_INVAL, __wasi_fd_allocate(fd, 0, 0));
  FAILS(__WASI_ERRNO_FBIG, __wasi_fd_allocate(fd, INT64_MAX, 1));
}

static void fd_fdstat_set_rights(void) {
  __wasi_rights_t rights = __WASI_RIGHTS_FD_READ | __WASI_RIGHTS_FD_WRITE |
                           __WASI_RIGHTS_FD_SEEK | __WASI_RIGHTS_FD_TELL;
  __wasi_fd_t fd = must_open(ROOT, "file", __WASI_OFLAGS_CREAT, rights, 0);
  uint8_t data[4] = {0, 1, 2, 3}, back[4];
  write_all(fd, data, 4);
  __wasi_filesize_t at;
  OK(__wasi_fd_seek(fd, 0, __WASI_WHENCE_SET, &at));
  __wasi_iovec_t in = {back, 4};
  __wasi_ciovec_t out = {data, 4};
  __wasi_size_t n;
  OK(__wasi_fd_read(fd, &in, 1, &n));
  CHECK(n == 4 && memcmp(data, back, 4) == 0);
  __wasi_fdstat_t st;
  OK(__wasi_fd_fdstat_get(fd, &st));
  CHECK(st.fs_rights_base == rights);
  OK(__wasi_fd_fdstat_set_rights(
      fd, __WASI_RIGHTS_FD_SEEK | __WASI_RIGHTS_FD_TELL, 0));
  FAILS(__WASI_ERRNO_NOTCAPABLE, __wasi_fd_read(fd, &in, 1, &n));
  FAILS(__WASI_ERRNO_NOTCAPABLE, __wasi_fd_write(fd, &out, 1, &n));
  FAILS(__WASI_ERRNO_NOTCAPABLE, __wasi_fd_fdstat_set_rights(fd, rights, 0));
}

static void fd_filestat_set(void) {
  __wasi_fd_t fd = must_open(ROOT, "file", __WASI_OFLAGS_CREAT,
                             DIR_INHERITING, 0);
  __wasi_filestat_t before, after;
  OK(__wasi_fd_filestat_set_size(fd, 100));
  OK(__wasi_fd_filestat_get(fd, &before));
  CHECK(before.size == 100);
  OK(__wasi_fd_filestat_set_times(fd, 5, before.mtim - 100,
                                  __WASI_FSTFLAGS_MTIM));
  OK(__wasi_fd_filestat_get(fd, &after));
  CHECK(after.size == 100 && after.mtim == before.mtim - 100);
  CHECK(after.atim == before.atim);
  FAILS(__WASI_ERRNO_INVAL,
        __wasi_fd_filestat_set_times(
            fd, 1, 2, __WASI_FSTFLAGS_MTIM | __WASI_FSTFLAGS_MTIM_NOW));
  FAILS(__WASI_ERRNO_INVAL,
        __wasi_fd_filestat_set_times(
            fd, 1, 2, __WASI_FSTFLAGS_ATIM | __WASI_FSTFLAGS_ATIM_NOW));
  OK(__wasi_fd_filestat_set_times(
      fd, 0, 0, __WASI_FSTFLAGS_MTIM_NOW | __WASI_FSTFLAGS_ATIM_NOW));
  OK(__wasi_fd_filestat_get(fd, &after));
  CHECK(after.mtim >= before.mtim && after.atim >= before.atim);
}

static void fd_flags_set(void) {
  uint8_t data[100], back[100];
  __wasi_filesize_t at;
  __wasi_size_t n;
  __wasi_iovec_t in = {back, 100};
  __wasi_fd_t fd = must_open(ROOT, "file", __WASI_OFLAGS_CREAT,
                             DIR_INHERITING, __WASI_FDFLAGS_APPEND);
  for (int round = 0; round < 2; round++) {
    memset(data, round, 100);
    OK(__wasi_fd_seek(fd, 0, __WASI_WHENCE_SET, &at));
    write_all(fd, data, 100); // at the end, wherever the offset is
    OK(__wasi_fd_tell(fd, &at));
    CHECK(at == (__wasi_filesize_t)(round + 1) * 100);
    OK(__wasi_fd_pread(fd, &in, 1, round * 100, &n));
    CHECK(n == 100 && memcmp(data, back, 100) == 0);
  }
  OK(__wasi_fd_fdstat_set_flags(fd, 0));
  memset(data, 2, 100);
  OK(__wasi_fd_seek(fd, 0, __WASI_WHENCE_SET, &at));
  write_all(fd, data, 100);
  OK(__wasi_fd_seek(fd, 0, __WASI_WHENCE_SET, &at));
  OK(__wasi_fd_read(fd, &in, 1, &n));
  CHECK(n == 100 && memcmp(data, back, 100) == 0);
  __wasi_filestat_t fs;
  OK(__wasi_path_filestat_get(ROOT, 0, "file", &fs));
  CHECK(fs.size == 200);
}

static void file_pread_pwrite(void) {
  uint8_t data[4] = {0, 1, 2, 3}, back[4] = {9, 9, 9, 9};
  __wasi_fd_t fd = must_open(ROOT, "file", __WASI_OFLAGS_CREAT,
                             DIR_INHERITING, 0);
  __wasi_ciovec_t out[2] = {{data, 2}, {data + 2, 2}};
  __wasi_iovec_t in[2] = {{back, 1}, {back + 1, 3}};
  __wasi_size_t n;
  OK(__wasi_fd_pwrite(fd, out, 2, 0, &n));
  CHECK(n == 4);
  OK(__wasi_fd_pread(fd, in, 2, 0, &n));
  CHECK(n == 4 && memcmp(data, back, 4) == 0);
  OK(__wasi_fd_pread(fd, in, 2, 2, &n));
  CHECK(n == 2 && back[0] == 2 && back[1] == 3 && back[2] == 2);
  OK(__wasi_fd_pread(fd, in, 2, 4, &n));
  CHECK(n == 0);
  for (int i = 0; i < 3; i++) {
    OK(__wasi_fd_pread(fd, in, 2, (1ull << (12 + 14 * i)) + i * 5 + 1, &n));
    CHECK(n == 0);
  }
  OK(__wasi_fd_pwrite(fd, out, 1, 9000, &n)); // over two pages of nothing
  OK(__wasi_fd_pread(fd, in, 2, 8999, &n));
  CHECK(n == 3 && back[0] == 0 && back[1] == 0 && back[2] == 1);
  FAILS(__WASI_ERRNO_FBIG, __wasi_fd_pwrite(fd, out, 1, INT64_MAX, &n));
  __wasi_filesize_t at;
  OK(__wasi_fd_tell(fd, &at));
  CHECK(at == 0);
}

static void file_seek_tell(void) {
  uint8_t data[100] = {0};
  __wasi_filesize_t at;
  __wasi_fd_t fd = must_open(ROOT, "file", __WASI_OFLAGS_CREAT,
                             DIR_INHERITING, 0);
  OK(__wasi_fd_tell(fd, &at));
  CHECK(at == 0);
  write_all(fd, data, 100);
  OK(__wasi_fd_tell(fd, &at));
  CHECK(at == 100);
  OK(__wasi_fd_seek(fd, -50, __WASI_WHENCE_CUR, &at));
  CHECK(at == 50);
  OK(__wasi_fd_seek(fd, -10, __WASI_WHENCE_END, &at));
  CHECK(at == 90);
  OK(__wasi_fd_seek(fd, 0, __WASI_WHENCE_SET, &at));
  CHECK(at == 0);
  OK(__wasi_fd_seek(fd, 1000, __WASI_WHENCE_CUR, &at));
  CHECK(at == 1000);
  FAILS(__WASI_ERRNO_INVAL,
        __wasi_fd_seek(fd, -2000, __WASI_WHENCE_CUR, &at));
  FAILS(__WASI_ERRNO_INVAL,
        __wasi_fd_seek(fd, INT64_MAX, __WASI_WHENCE_CUR, &at));
  FAILS(__WASI_ERRNO_INVAL, __wasi_fd_seek(fd, 0, 3, &at));
  OK(__wasi_fd_tell(fd, &at));
  CHECK(at == 1000);
  __wasi_iovec_t in = {data, 100};
  __wasi_size_t n;
  OK(__wasi_fd_read(fd, &in, 1, &n));
  CHECK(n == 0);
  FAILS(__WASI_ERRNO_SPIPE, __wasi_fd_seek(1, 0, __WASI_WHENCE_SET, &at));
}

static void file_truncation(void) {
  uint8_t data[10000], back[10000];
  memset(data, 7, sizeof data);
  __wasi_fd_t fd = must_open(ROOT, "file", __WASI_OFLAGS_CREAT,
                             DIR_INHERITING, 0);
  write_all(fd, data, sizeof data);
  OK(__wasi_fd_filestat_set_size(fd, 5000));
  OK(__wasi_fd_filestat_set_size(fd, 8000));
  __wasi_iovec_t in = {back, sizeof back};
  __wasi_size_t n;
  OK(__wasi_fd_pread(fd, &in, 1, 0, &n));
  CHECK(n == 8000 && memcmp(data, back, 5000) == 0);
  for (int i = 5000; i < 8000; i++)
    CHECK(back[i] == 0); // what was cut does not come back
  OK(try_open(ROOT, "file", __WASI_OFLAGS_TRUNC));
  OK(__wasi_fd_pread(fd, &in, 1, 0, &n));
  CHECK(n == 0);
  FAILS(__WASI_ERRNO_FBIG, __wasi_fd_filestat_set_size(fd, 1ull << 60));
}

static void isatty(void) {
  __wasi_fdstat_t st;
  for (int fd = 0; fd < 3; fd++) {
    OK(__wasi_fd_fdstat_get(fd, &st));
    CHECK(st.fs_filetype == __WASI_FILETYPE_CHARACTER_DEVICE);
  }
  __wasi_fd_t fd = must_open(ROOT, "file", __WASI_OFLAGS_CREAT,
                             DIR_INHERITING, 0);
  OK(__wasi_fd_fdstat_get(fd, &st));
  CHECK(st.fs_filetype == __WASI_FILETYPE_REGULAR_FILE);
}

static void renumber(void) {
  __wasi_fd_t a = must_open(ROOT, "a", __WASI_OFLAGS_CREAT,
                            __WASI_RIGHTS_FD_READ, 0);
  __wasi_fd_t b = must_open(ROOT, "b", __WASI_OFLAGS_CREAT,
                            __WASI_RIGHTS_FD_WRITE, __WASI_FDFLAGS_APPEND);
  __wasi_fdstat_t was, is;
  OK(__wasi_fd_fdstat_get(a, &was));
  OK(__wasi_fd_renumber(a, b));
  FAILS(__WASI_ERRNO_BADF, __wasi_fd_close(a));
  OK(__wasi_fd_fdstat_get(b, &is));
  CHECK(was.fs_filetype == is.fs_filetype && was.fs_flags == is.fs_flags &&
        was.fs_rights_base == is.fs_rights_base &&
        was.fs_rights_inheriting == is.fs_rights_inheriting);
  FAILS(__WASI_ERRNO_BADF, __wasi_fd_renumber(b, a));
  OK(__wasi_fd_renumber(b, b));
  OK(__wasi_fd_close(b));
}

static void overwrite_preopen(void) {
  __wasi_fd_t dir = scratch("dir");
  __wasi_filestat_t was, is;
  OK(__wasi_fd_filestat_get(dir, &was));
  OK(__wasi_fd_renumber(dir, READONLY));
  OK(__wasi_fd_filestat_get(READONLY, &is));
  CHECK(was.dev == is.dev && was.ino == is.ino);
  FAILS(__WASI_ERRNO_BADF, __wasi_fd_filestat_get(dir, &is));
}

static void dangling_fd(void) {
  __wasi_fd_t fd = must_open(ROOT, "gone", __WASI_OFLAGS_CREAT,
                             DIR_INHERITING, 0);
  write_all(fd, "still here", 10);
  OK(__wasi_path_unlink_file(ROOT, "gone"));
  FAILS(__WASI_ERRNO_NOENT, try_open(ROOT, "gone", 0));
  create(ROOT, "gone"); // another file of that name
  char back[16];
  __wasi_iovec_t in = {(uint8_t *)back, sizeof back};
  __wasi_size_t n;
  OK(__wasi_fd_pread(fd, &in, 1, 0, &n));
  CHECK(n == 10 && memcmp(back, "still here", 10) == 0);
  __wasi_filestat_t fs;
  OK(__wasi_fd_filestat_get(fd, &fs));
  CHECK(fs.nlink == 0);
  OK(__wasi_fd_close(fd));

  __wasi_fd_t dir = scratch("dir");
  OK(__wasi_path_remove_directory(ROOT, "dir"));
  FAILS(__WASI_ERRNO_NOENT, try_open(dir, "file", __WASI_OFLAGS_CREAT));
  FAILS(__WASI_ERRNO_NOENT, __wasi_path_create_directory(dir, "sub"));
  OK(__wasi_path_create_directory(ROOT, "dir"));
}

static void stdio(void) {
  for (int fd = 0; fd < 3; fd++) {
    __wasi_fdstat_t st;
    OK(__wasi_fd_fdstat_get(fd, &st));
    __wasi_prestat_t ps;
    FAILS(__WASI_ERRNO_BADF, __wasi_fd_prestat_get(fd, &ps));
  }
  OK(__wasi_fd_close(0));
  FAILS(__WASI_ERRNO_BADF, __wasi_fd_close(0));
}

// Each of the three goes on under the number of a file.
static void stdio_renumbered(void) {
  __wasi_fdstat_t st;
  for (int fd = 0; fd < 3; fd++) {
    __wasi_fd_t to;
    OK(__wasi_path_open(ROOT, 0, "file", __WASI_OFLAGS_CREAT, 0, 0, 0, &to));
    OK(__wasi_fd_renumber(fd, to));
    OK(__wasi_fd_fdstat_get(to, &st));
    CHECK(st.fs_filetype == __WASI_FILETYPE_CHARACTER_DEVICE);
    FAILS(__WASI_ERRNO_BADF, __wasi_fd_fdstat_get(fd, &st));
    OK(__wasi_path_unlink_file(ROOT, "file"));
  }
}

// What is written through one descriptor is there for another at once.
static void file_unbuffered_write(void) {
  __wasi_fd_t r = must_open(ROOT, "file", __WASI_OFLAGS_CREAT,
                            __WASI_RIGHTS_FD_READ, 0);
  __wasi_fd_t w = must_open(ROOT, "file", 0, __WASI_RIGHTS_FD_WRITE, 0);
  uint8_t byte = 0;
  __wasi_iovec_t in = {&byte, 1};
  __wasi_size_t n;
  for (int i = 1; i < 4; i++) {
    write_all(w, &i, 1);
    OK(__wasi_fd_read(r, &in, 1, &n));
    CHECK(n == 1 && byte == i);
  }
}

static void sched_yield(void) { OK(__wasi_sched_yield()); }

static void sockets(void) {
  __wasi_fd_t fd;
  FAILS(__WASI_ERRNO_NOTSOCK, __wasi_sock_shutdown(ROOT, __WASI_SDFLAGS_WR));
  FAILS(__WASI_ERRNO_NOTSOCK, __wasi_sock_shutdown(1, __WASI_SDFLAGS_RD));
  FAILS(__WASI_ERRNO_BADF, __wasi_sock_shutdown(77, __WASI_SDFLAGS_RD));
  FAILS(__WASI_ERRNO_NOTSOCK, __wasi_sock_accept(ROOT, 0, &fd));
}

static void fd_write_to_invalid_fd(void) {
  __wasi_ciovec_t v = {(const uint8_t *)"x", 1};
  __wasi_size_t n;
  FAILS(__WASI_ERRNO_BADF, __wasi_fd_write(99, &v, 1, &n));
  FAILS(__WASI_ERRNO_BADF, __wasi_fd_write(-1, &v, 1, &n));
  FAILS(__WASI_ERRNO_BADF, __wasi_fd_write(0, &v, 1, &n));
}

static void poll_oneoff_stdio(void) {
  __wasi_subscription_t subs[3];
  __wasi_event_t events[3];
  __wasi_size_t n;
  memset(subs, 0, sizeof subs);
  subs[0].userdata = 1;
  subs[0].u.tag = __WASI_EVENTTYPE_CLOCK;
  subs[0].u.u.clock.id = __WASI_CLOCKID_MONOTONIC;
  subs[0].u.u.clock.timeout = 3600000000000;
  subs[1].userdata = 2;
  subs[1].u.tag = __WASI_EVENTTYPE_FD_READ;
  subs[2].userdata = 3;
  subs[2].u.tag = __WASI_EVENTTYPE_FD_WRITE;
  subs[2].u.u.fd_write.file_descriptor = 1;
  OK(__wasi_poll_oneoff(subs, events, 3, &n));
  CHECK(n == 2 && events[0].userdata == 2 && events[0].error == 0);
  CHECK(events[1].userdata == 3 && events[1].error == 0);
  CHECK(events[1].type == __WASI_EVENTTYPE_FD_WRITE);

  subs[0].u.u.clock.timeout = 2000000; // slept in full
  __wasi_timestamp_t a, b;
  OK(__wasi_clock_time_get(__WASI_CLOCKID_MONOTONIC, 0, &a));
  OK(__wasi_poll_oneoff(subs, events, 1, &n));
  OK(__wasi_clock_time_get(__WASI_CLOCKID_MONOTONIC, 0, &b));
  CHECK(n == 1 && events[0].userdata == 1 && b - a >= 2000000);
  subs[0].u.u.clock.timeout = b + 2000000;
  subs[0].u.u.clock.flags = __WASI_SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME;
  OK(__wasi_poll_oneoff(subs, events, 1, &n));
  OK(__wasi_clock_time_get(__WASI_CLOCKID_MONOTONIC, 0, &a));
  CHECK(n == 1 && a >= b + 2000000);
  FAILS(__WASI_ERRNO_INVAL, __wasi_poll_oneoff(subs, events, 0, &n));
}

const struct test raw_cases[] = {
    {"big_random_buf", big_random_buf},
    {"clocks", clocks},
    {"close_preopen", close_preopen},
    {"dangling_fd", dangling_fd},
    {"dir_fd_op_failures", dir_fd_op_failures},
    {"directory_seek", directory_seek},
    {"fd_advise", fd_advise},
    {"fd_fdstat_set_rights", fd_fdstat_set_rights},
    {"fd_filestat_set", fd_filestat_set},
    {"fd_flags_set", fd_flags_set},
    {"fd_write-to-invalid-fd", fd_write_to_invalid_fd},
    {"file_allocate", file_allocate},
    {"file_pread_pwrite", file_pread_pwrite},
    {"file_seek_tell", file_seek_tell},
    {"file_truncation", file_truncation},
    {"file_unbuffered_write", file_unbuffered_write},
    {"isatty", isatty},
    {"overwrite_preopen", overwrite_preopen},
    {"poll_oneoff_stdio", poll_oneoff_stdio},
    {"renumber", renumber},
    {"sched_yield", sched_yield},
    {"sockets", sockets},
    {"stdio", stdio},
    {"stdio_renumbered", stdio_renumbered},
    {0},
};
