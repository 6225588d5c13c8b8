// Cases of paths, by direct calls.
#include "cases.h"

#define FOLLOW __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW

// A path with its length, which the header's functions take from the string.
__attribute__((import_module("wasi_snapshot_preview1"), import_name("path_open")))
int32_t open_bytes(int32_t fd, int32_t flags, const void *path, int32_t n,
                   int32_t oflags, int64_t base, int64_t inheriting,
                   int32_t fdflags, void *out);

static int open_follow(__wasi_fd_t dir, const char *path, int oflags) {
  __wasi_fd_t fd;
  int e = __wasi_path_open(dir, FOLLOW, path, oflags, 0, 0, 0, &fd);
  if (e == 0)
    OK(__wasi_fd_close(fd));
  return e;
}

static void dangling_symlink(void) {
  __wasi_fd_t dir = scratch("scratch");
  OK(__wasi_path_symlink("target", dir, "link"));
  FAILS(__WASI_ERRNO_LOOP, try_open(dir, "link", __WASI_OFLAGS_DIRECTORY));
  FAILS(__WASI_ERRNO_LOOP, try_open(dir, "link", 0));
  FAILS(__WASI_ERRNO_NOENT, open_follow(dir, "link", 0));
  FAILS(__WASI_ERRNO_EXIST,
        open_follow(dir, "link", __WASI_OFLAGS_CREAT | __WASI_OFLAGS_EXCL));
  OK(open_follow(dir, "link", __WASI_OFLAGS_CREAT)); // makes the target
  OK(try_open(dir, "target", 0));
}

static void interesting_paths(void) {
  __wasi_fd_t dir = scratch("scratch");
  OK(__wasi_path_create_directory(dir, "dir"));
  OK(__wasi_path_create_directory(dir, "dir/nested"));
  create(dir, "dir/nested/file");
  FAILS(__WASI_ERRNO_PERM, try_open(dir, "/dir/nested/file", 0));
  OK(try_open(dir, "dir/.//nested/../../dir/nested/../nested///./file", 0));
  __wasi_fd_t fd;
  FAILS(__WASI_ERRNO_INVAL,
        open_bytes(dir, 0, "dir/nested/file\0", 16, 0, 0, 0, 0, &fd));
  FAILS(__WASI_ERRNO_ILSEQ, try_open(dir, "dir/\xff", 0));
  FAILS(__WASI_ERRNO_NOENT, try_open(dir, "", 0));
  FAILS(__WASI_ERRNO_NOTDIR, try_open(dir, "dir/nested/file/", 0));
  FAILS(__WASI_ERRNO_NOTDIR, try_open(dir, "dir/nested/file///", 0));
  FAILS(__WASI_ERRNO_NOTDIR, try_open(dir, "dir/nested/file/.", 0));
  OK(try_open(dir, "dir/nested/", 0));
  OK(try_open(dir, "dir/nested///", 0));
  FAILS(__WASI_ERRNO_PERM,
        try_open(dir, "dir/nested/../../../scratch/dir/nested/file", 0));
  FAILS(__WASI_ERRNO_PERM, try_open(dir, "..", 0));
  static char name[5000];
  memset(name, 'x', 256);
  FAILS(__WASI_ERRNO_NAMETOOLONG, try_open(dir, name, 0));
  name[255] = 0;
  FAILS(__WASI_ERRNO_NOENT, try_open(dir, name, 0));
  create(dir, name);
  memset(name, '/', 4998);
  name[0] = '.';
  FAILS(__WASI_ERRNO_NAMETOOLONG, try_open(dir, name, 0));
}

static void nofollow_errors(void) {
  __wasi_fd_t dir = scratch("scratch");
  OK(__wasi_path_create_directory(dir, "target"));
  OK(__wasi_path_symlink("target", dir, "link"));
  for (int file = 0; file < 2; file++) {
    FAILS(__WASI_ERRNO_LOOP, try_open(dir, "link", __WASI_OFLAGS_DIRECTORY));
    FAILS(__WASI_ERRNO_LOOP, try_open(dir, "link", 0));
    FAILS(file ? __WASI_ERRNO_NOTDIR : 0,
          open_follow(dir, "link", __WASI_OFLAGS_DIRECTORY));
    FAILS(file ? __WASI_ERRNO_NOTDIR : 0, try_open(dir, "link/", 0));
    if (!file) {
      OK(__wasi_path_remove_directory(dir, "target"));
      create(dir, "target");
    }
  }
}

static void path_exists(void) {
  __wasi_fd_t dir = scratch("scratch");
  __wasi_filestat_t fs;
  OK(__wasi_path_create_directory(dir, "sub"));
  create(dir, "sub/file");
  OK(__wasi_path_symlink("sub/file", dir, "to-file"));
  OK(__wasi_path_symlink("sub", dir, "to-dir"));
  struct {
    const char *path;
    int flags, type;
  } want[] = {
      {"sub", 0, __WASI_FILETYPE_DIRECTORY},
      {"sub", FOLLOW, __WASI_FILETYPE_DIRECTORY},
      {"sub/file", 0, __WASI_FILETYPE_REGULAR_FILE},
      {"sub/file", FOLLOW, __WASI_FILETYPE_REGULAR_FILE},
      {"to-file", 0, __WASI_FILETYPE_SYMBOLIC_LINK},
      {"to-file", FOLLOW, __WASI_FILETYPE_REGULAR_FILE},
      {"to-dir", 0, __WASI_FILETYPE_SYMBOLIC_LINK},
      {"to-dir", FOLLOW, __WASI_FILETYPE_DIRECTORY},
      {"to-dir/", 0, __WASI_FILETYPE_DIRECTORY},
      {"to-dir/file", 0, __WASI_FILETYPE_REGULAR_FILE},
      {"to-dir/../to-file", 0, __WASI_FILETYPE_SYMBOLIC_LINK},
  };
  for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
    OK(__wasi_path_filestat_get(dir, want[i].flags, want[i].path, &fs));
    CHECK(fs.filetype == want[i].type);
  }
  FAILS(__WASI_ERRNO_NOTDIR, __wasi_path_filestat_get(dir, 0, "to-file/", &fs));
  FAILS(__WASI_ERRNO_NOENT, __wasi_path_filestat_get(dir, 0, "none", &fs));
}

static void path_filestat(void) {
  __wasi_fd_t dir = scratch("scratch");
  int flags = __WASI_FDFLAGS_APPEND | __WASI_FDFLAGS_SYNC;
  __wasi_fd_t fd = must_open(dir, "file", __WASI_OFLAGS_CREAT,
                             DIR_INHERITING, flags);
  __wasi_fdstat_t st;
  OK(__wasi_fd_fdstat_get(fd, &st));
  CHECK(st.fs_flags == flags);
  __wasi_filestat_t fs;
  OK(__wasi_path_filestat_get(dir, 0, "file", &fs));
  CHECK(fs.size == 0 && fs.nlink == 1 && fs.mtim > 1000000000);
  __wasi_timestamp_t m = fs.mtim - 100;
  OK(__wasi_path_filestat_set_times(dir, 0, "file", 0, m,
                                    __WASI_FSTFLAGS_MTIM));
  FAILS(__WASI_ERRNO_INVAL,
        __wasi_path_filestat_set_times(dir, 0, "file", 0, m + 1,
                                       __WASI_FSTFLAGS_MTIM |
                                           __WASI_FSTFLAGS_MTIM_NOW));
  FAILS(__WASI_ERRNO_INVAL,
        __wasi_path_filestat_set_times(dir, 0, "file", 1, 0,
                                       __WASI_FSTFLAGS_ATIM |
                                           __WASI_FSTFLAGS_ATIM_NOW));
  OK(__wasi_path_filestat_get(dir, 0, "file", &fs));
  CHECK(fs.mtim == m);
}

static void symlink_filestat(void) {
  __wasi_fd_t dir = scratch("scratch");
  create(dir, "file");
  OK(__wasi_path_symlink("file", dir, "link"));
  __wasi_filestat_t file, link, now;
  OK(__wasi_path_filestat_get(dir, 0, "file", &file));
  OK(__wasi_path_filestat_get(dir, 0, "link", &link));
  CHECK(link.size == 4 && link.ino != file.ino);
  OK(__wasi_path_filestat_set_times(dir, 0, "link", 0, link.mtim - 200,
                                    __WASI_FSTFLAGS_MTIM));
  OK(__wasi_path_filestat_get(dir, 0, "link", &now));
  CHECK(now.mtim == link.mtim - 200);
  OK(__wasi_path_filestat_get(dir, FOLLOW, "link", &now));
  CHECK(now.mtim == file.mtim && now.ino == file.ino);
  OK(__wasi_path_filestat_set_times(dir, FOLLOW, "link", 0, 77,
                                    __WASI_FSTFLAGS_MTIM));
  OK(__wasi_path_filestat_get(dir, 0, "file", &now));
  CHECK(now.mtim == 77);
}

static void path_link(void) {
  __wasi_fd_t dir = scratch("scratch");
  __wasi_fd_t fd = must_open(dir, "file", __WASI_OFLAGS_CREAT,
                             DIR_INHERITING, 0);
  OK(__wasi_path_create_directory(dir, "sub"));
  OK(__wasi_path_link(dir, 0, "file", dir, "link"));
  OK(__wasi_path_link(dir, 0, "file", dir, "sub/link"));
  __wasi_filestat_t a, b;
  OK(__wasi_fd_filestat_get(fd, &a));
  OK(__wasi_path_filestat_get(dir, 0, "sub/link", &b));
  CHECK(a.nlink == 3 && memcmp(&a, &b, sizeof a) == 0);
  write_all(fd, "abc", 3);
  OK(__wasi_path_filestat_get(dir, 0, "link", &b));
  CHECK(b.size == 3);
  OK(__wasi_path_unlink_file(dir, "sub/link"));
  OK(__wasi_path_remove_directory(dir, "sub"));

  FAILS(__WASI_ERRNO_EXIST, __wasi_path_link(dir, 0, "file", dir, "link"));
  FAILS(__WASI_ERRNO_EXIST, __wasi_path_link(dir, 0, "file", dir, "file"));
  OK(__wasi_path_unlink_file(dir, "link"));
  OK(__wasi_path_create_directory(dir, "link"));
  FAILS(__WASI_ERRNO_EXIST, __wasi_path_link(dir, 0, "file", dir, "link"));
  FAILS(__WASI_ERRNO_PERM, __wasi_path_link(dir, 0, "link", dir, "other"));
  OK(__wasi_path_remove_directory(dir, "link"));
  FAILS(__WASI_ERRNO_NOENT, __wasi_path_link(dir, 0, "file", dir, "link/"));
  FAILS(__WASI_ERRNO_NOENT, __wasi_path_link(dir, 0, "none", dir, "link"));

  // A link is the file: opened with the same rights it has the same, those of
  // directories among them as far as a file can have any.
  OK(__wasi_path_link(dir, 0, "file", dir, "link"));
  __wasi_rights_t rights = __WASI_RIGHTS_FD_READ |
                           __WASI_RIGHTS_FD_FILESTAT_GET |
                           __WASI_RIGHTS_PATH_OPEN |
                           __WASI_RIGHTS_PATH_LINK_SOURCE |
                           __WASI_RIGHTS_PATH_UNLINK_FILE;
  __wasi_fdstat_t sa, sb;
  OK(__wasi_fd_fdstat_get(must_open(dir, "file", 0, rights, 0), &sa));
  OK(__wasi_fd_fdstat_get(must_open(dir, "link", 0, rights, 0), &sb));
  CHECK(sa.fs_rights_base == sb.fs_rights_base &&
        sa.fs_rights_inheriting == sb.fs_rights_inheriting &&
        sa.fs_flags == sb.fs_flags && sa.fs_filetype == sb.fs_filetype);
  OK(__wasi_path_unlink_file(dir, "link"));

  // Symbolic links are not followed, wherever they lead.
  OK(__wasi_path_symlink("nowhere", dir, "dangling"));
  OK(__wasi_path_link(dir, 0, "dangling", dir, "link"));
  OK(__wasi_path_filestat_get(dir, 0, "link", &b));
  CHECK(b.filetype == __WASI_FILETYPE_SYMBOLIC_LINK && b.nlink == 2);
  FAILS(__WASI_ERRNO_EXIST, __wasi_path_link(dir, 0, "file", dir, "dangling"));
  FAILS(__WASI_ERRNO_INVAL,
        __wasi_path_link(dir, FOLLOW, "dangling", dir, "other"));
  OK(__wasi_path_unlink_file(dir, "link"));
  OK(__wasi_path_symlink("symlink", dir, "symlink"));
  OK(__wasi_path_link(dir, 0, "symlink", dir, "link"));
  FAILS(__WASI_ERRNO_EXIST, __wasi_path_link(dir, 0, "file", dir, "symlink"));
  FAILS(__WASI_ERRNO_INVAL,
        __wasi_path_link(dir, FOLLOW, "symlink", dir, "other"));
}

static void path_open_create_existing(void) {
  create(ROOT, "file");
  FAILS(__WASI_ERRNO_EXIST,
        try_open(ROOT, "file", __WASI_OFLAGS_CREAT | __WASI_OFLAGS_EXCL));
  OK(try_open(ROOT, "file", __WASI_OFLAGS_CREAT));
  FAILS(__WASI_ERRNO_ISDIR, try_open(ROOT, "new/", __WASI_OFLAGS_CREAT));
}

static void path_open_dirfd_not_dir(void) {
  __wasi_fd_t fd = must_open(ROOT, "file", __WASI_OFLAGS_CREAT, 0, 0);
  FAILS(__WASI_ERRNO_NOTDIR, try_open(fd, "foo", __WASI_OFLAGS_CREAT));
}

static void path_open_missing(void) {
  FAILS(__WASI_ERRNO_NOENT, try_open(ROOT, "none", 0));
  FAILS(__WASI_ERRNO_NOENT, try_open(ROOT, "none/none", __WASI_OFLAGS_CREAT));
}

static void path_open_nonblock(void) {
  create(ROOT, "file");
  must_open(ROOT, "file", 0, DIR_INHERITING, __WASI_FDFLAGS_NONBLOCK);
}

static void path_open_preopen(void) {
  __wasi_fdstat_t st;
  __wasi_fd_t fd;
  OK(__wasi_fd_fdstat_get(ROOT, &st));
  // What C libraries count on.
  CHECK((st.fs_rights_base & 0x6fffe00 & ~__WASI_RIGHTS_FD_FILESTAT_SET_SIZE) ==
        (0x6fffe00 & ~__WASI_RIGHTS_FD_FILESTAT_SET_SIZE));
  CHECK((st.fs_rights_inheriting & 0xfffffff) == 0xfffffff);
  OK(__wasi_path_open(ROOT, 0, ".", 0, st.fs_rights_base,
                      st.fs_rights_inheriting, 0, &fd));
  OK(try_open(ROOT, ".", 0));
  OK(try_open(ROOT, ".", __WASI_OFLAGS_DIRECTORY));
  must_open(ROOT, ".", __WASI_OFLAGS_DIRECTORY, __WASI_RIGHTS_FD_READ, 0);
  FAILS(__WASI_ERRNO_ISDIR,
        __wasi_path_open(ROOT, 0, ".", __WASI_OFLAGS_DIRECTORY,
                         __WASI_RIGHTS_FD_READ | __WASI_RIGHTS_FD_WRITE, 0, 0,
                         &fd));
}

static void path_open_read_write(void) {
  char buf[100];
  __wasi_iovec_t in = {(uint8_t *)buf, sizeof buf};
  __wasi_ciovec_t out = {(uint8_t *)buf, 50};
  __wasi_size_t n;
  create(ROOT, "file");
  __wasi_fd_t r = must_open(ROOT, "file", 0, __WASI_RIGHTS_FD_READ, 0);
  __wasi_fd_t w = must_open(ROOT, "file", 0, __WASI_RIGHTS_FD_WRITE, 0);
  FAILS(__WASI_ERRNO_NOTCAPABLE, __wasi_fd_write(r, &out, 1, &n));
  FAILS(__WASI_ERRNO_NOTCAPABLE, __wasi_fd_read(w, &in, 1, &n));
  OK(__wasi_fd_read(r, &in, 1, &n));
  CHECK(n == 0);
  write_all(w, buf, 50);
  OK(__wasi_fd_read(r, &in, 1, &n));
  CHECK(n == 50);
}

static void path_open_read_without_rights(void) {
  char buf[10];
  __wasi_iovec_t in = {(uint8_t *)buf, sizeof buf};
  __wasi_size_t n;
  create(ROOT, "file");
  __wasi_fd_t fd = must_open(ROOT, "file", 0, 0, 0);
  FAILS(__WASI_ERRNO_NOTCAPABLE, __wasi_fd_read(fd, &in, 1, &n));
  FAILS(__WASI_ERRNO_NOTCAPABLE,
        __wasi_fd_fdstat_set_rights(fd, __WASI_RIGHTS_FD_READ, 0));
}

static void path_rename(void) {
  __wasi_fd_t dir = scratch("scratch");
  OK(__wasi_path_create_directory(dir, "source"));
  OK(__wasi_path_rename(dir, "source", dir, "target"));
  FAILS(__WASI_ERRNO_NOENT, try_open(dir, "source", __WASI_OFLAGS_DIRECTORY));
  OK(try_open(dir, "target", __WASI_OFLAGS_DIRECTORY));
  OK(__wasi_path_create_directory(dir, "source"));
  OK(__wasi_path_rename(dir, "source", dir, "target")); // onto an empty one
  FAILS(__WASI_ERRNO_NOENT, try_open(dir, "source", __WASI_OFLAGS_DIRECTORY));

  OK(__wasi_path_create_directory(dir, "source"));
  create(dir, "target/file");
  FAILS(__WASI_ERRNO_NOTEMPTY,
        __wasi_path_rename(dir, "source", dir, "target"));
  FAILS(__WASI_ERRNO_NOTDIR,
        __wasi_path_rename(dir, "source", dir, "target/file"));
  FAILS(__WASI_ERRNO_INVAL,
        __wasi_path_rename(dir, "target", dir, "target/sub"));
  FAILS(__WASI_ERRNO_ISDIR,
        __wasi_path_rename(dir, "target/file", dir, "source"));
  OK(__wasi_path_unlink_file(dir, "target/file"));
  OK(__wasi_path_remove_directory(dir, "source"));
  OK(__wasi_path_remove_directory(dir, "target"));

  create(dir, "source");
  OK(__wasi_path_rename(dir, "source", dir, "target"));
  create(dir, "source");
  OK(__wasi_path_rename(dir, "source", dir, "target")); // over a file
  FAILS(__WASI_ERRNO_NOENT, try_open(dir, "source", 0));
  OK(try_open(dir, "target", 0));
  FAILS(__WASI_ERRNO_NOTDIR, __wasi_path_rename(dir, "target", dir, "dir/"));
  OK(__wasi_path_link(dir, 0, "target", dir, "other"));
  OK(__wasi_path_rename(dir, "target", dir, "other")); // the same file
  OK(try_open(dir, "target", 0));
  FAILS(__WASI_ERRNO_NOENT, __wasi_path_rename(dir, "none", dir, "some"));
}

static void path_rename_dir_trailing_slashes(void) {
  __wasi_fd_t dir = scratch("scratch");
  OK(__wasi_path_create_directory(dir, "a"));
  OK(__wasi_path_rename(dir, "a/", dir, "b"));
  OK(__wasi_path_rename(dir, "b", dir, "a/"));
  OK(__wasi_path_rename(dir, "a/", dir, "b/"));
  OK(__wasi_path_rename(dir, "b", dir, "a"));
  OK(__wasi_path_remove_directory(dir, "a"));
}

static void path_symlink_trailing_slashes(void) {
  __wasi_fd_t dir = scratch("scratch");
  FAILS(__WASI_ERRNO_NOENT, __wasi_path_symlink("source", dir, "target/"));
  OK(__wasi_path_create_directory(dir, "target"));
  FAILS(__WASI_ERRNO_EXIST, __wasi_path_symlink("source", dir, "target/"));
  FAILS(__WASI_ERRNO_EXIST, __wasi_path_symlink("source", dir, "target"));
  OK(__wasi_path_remove_directory(dir, "target"));
  create(dir, "target");
  FAILS(__WASI_ERRNO_EXIST, __wasi_path_symlink("source", dir, "target/"));
  FAILS(__WASI_ERRNO_EXIST, __wasi_path_symlink("source", dir, "target"));
}

static void readlink(void) {
  uint8_t buf[10] = {0};
  __wasi_size_t n;
  OK(__wasi_path_symlink("target", ROOT, "link"));
  OK(__wasi_path_readlink(ROOT, "link", buf, sizeof buf, &n));
  CHECK(n == 6 && memcmp(buf, "target\0\0\0", 10) == 0);
  memset(buf, 0, sizeof buf);
  OK(__wasi_path_readlink(ROOT, "link", buf, 4, &n));
  CHECK(n == 4 && memcmp(buf, "targ\0", 6) == 0);
  create(ROOT, "file");
  FAILS(__WASI_ERRNO_INVAL, __wasi_path_readlink(ROOT, "file", buf, 4, &n));
}

static void remove_directory(void) {
  __wasi_fd_t dir = scratch("scratch");
  OK(__wasi_path_create_directory(dir, "dir"));
  OK(__wasi_path_create_directory(dir, "dir/nested"));
  FAILS(__WASI_ERRNO_NOTEMPTY, __wasi_path_remove_directory(dir, "dir"));
  FAILS(__WASI_ERRNO_INVAL, __wasi_path_remove_directory(dir, "dir/."));
  OK(__wasi_path_remove_directory(dir, "dir/nested/"));
  OK(__wasi_path_remove_directory(dir, "dir"));
  create(dir, "file");
  FAILS(__WASI_ERRNO_NOTDIR, __wasi_path_remove_directory(dir, "file"));
  FAILS(__WASI_ERRNO_NOTDIR, __wasi_path_remove_directory(dir, "file/"));
  FAILS(__WASI_ERRNO_NOENT, __wasi_path_remove_directory(dir, "none"));
}

static void unlink_file_trailing_slashes(void) {
  __wasi_fd_t dir = scratch("scratch");
  OK(__wasi_path_create_directory(dir, "dir"));
  FAILS(__WASI_ERRNO_ISDIR, __wasi_path_unlink_file(dir, "dir"));
  FAILS(__WASI_ERRNO_ISDIR, __wasi_path_unlink_file(dir, "dir/"));
  create(dir, "file");
  FAILS(__WASI_ERRNO_NOTDIR, __wasi_path_unlink_file(dir, "file/"));
  OK(__wasi_path_unlink_file(dir, "file"));
}

static void symlink_create(void) {
  create(ROOT, "file");
  OK(__wasi_path_create_directory(ROOT, "folder"));
  OK(__wasi_path_symlink("file", ROOT, "to-file"));
  OK(__wasi_path_symlink("folder", ROOT, "to-dir"));
  OK(open_follow(ROOT, "to-file", 0));
  OK(open_follow(ROOT, "to-dir", __WASI_OFLAGS_DIRECTORY));
  FAILS(__WASI_ERRNO_PERM, __wasi_path_symlink("/", ROOT, "to-root"));
  OK(__wasi_path_symlink("../..", ROOT, "folder/out"));
  FAILS(__WASI_ERRNO_PERM, open_follow(ROOT, "folder/out/etc", 0));
  OK(__wasi_path_symlink("../file", ROOT, "folder/in"));
  OK(open_follow(ROOT, "folder/in", 0));
}

static void symlink_loop(void) {
  OK(__wasi_path_symlink("loop", ROOT, "loop"));
  FAILS(__WASI_ERRNO_LOOP, try_open(ROOT, "loop", 0));
  FAILS(__WASI_ERRNO_LOOP, open_follow(ROOT, "loop", 0));
  FAILS(__WASI_ERRNO_LOOP, try_open(ROOT, "loop/file", 0));
}

static void truncation_rights(void) {
  __wasi_fd_t dir = scratch("scratch");
  create(dir, "file");
  __wasi_fdstat_t st;
  OK(__wasi_fd_fdstat_get(dir, &st));
  CHECK(st.fs_filetype == __WASI_FILETYPE_DIRECTORY && st.fs_flags == 0);
  CHECK((st.fs_rights_base & __WASI_RIGHTS_FD_FILESTAT_SET_SIZE) == 0);
  OK(try_open(dir, "file", __WASI_OFLAGS_TRUNC));
  __wasi_rights_t base = st.fs_rights_base, inheriting = st.fs_rights_inheriting;
  inheriting &= ~__WASI_RIGHTS_FD_FILESTAT_SET_SIZE;
  OK(__wasi_fd_fdstat_set_rights(dir, base, inheriting));
  OK(try_open(dir, "file", __WASI_OFLAGS_TRUNC));
  base &= ~__WASI_RIGHTS_PATH_FILESTAT_SET_SIZE;
  OK(__wasi_fd_fdstat_set_rights(dir, base, inheriting));
  FAILS(__WASI_ERRNO_NOTCAPABLE, try_open(dir, "file", __WASI_OFLAGS_TRUNC));
}

static void read_only(void) {
  __wasi_fd_t fd;
  __wasi_filestat_t fs;
  OK(try_open(READONLY, "text", 0));
  OK(__wasi_path_filestat_get(READONLY, 0, "text", &fs));
  fd = must_open(READONLY, "text", 0, __WASI_RIGHTS_FD_READ, 0);
  char buf[32];
  __wasi_iovec_t in = {(uint8_t *)buf, sizeof buf};
  __wasi_size_t n;
  OK(__wasi_fd_read(fd, &in, 1, &n));
  CHECK(n == 12 && memcmp(buf, "only to read", 12) == 0);
  FAILS(__WASI_ERRNO_NOTCAPABLE,
        __wasi_path_open(READONLY, 0, "text", 0, __WASI_RIGHTS_FD_WRITE, 0, 0,
                         &fd));
  FAILS(__WASI_ERRNO_NOTCAPABLE, try_open(READONLY, "new", __WASI_OFLAGS_CREAT));
  FAILS(__WASI_ERRNO_NOTCAPABLE, try_open(READONLY, "text", __WASI_OFLAGS_TRUNC));
  FAILS(__WASI_ERRNO_NOTCAPABLE, __wasi_path_unlink_file(READONLY, "text"));
  FAILS(__WASI_ERRNO_NOTCAPABLE,
        __wasi_path_link(READONLY, 0, "text", ROOT, "text"));
  FAILS(__WASI_ERRNO_NOTCAPABLE,
        __wasi_path_rename(READONLY, "text", ROOT, "text"));
  FAILS(__WASI_ERRNO_NOTCAPABLE, __wasi_path_create_directory(READONLY, "d"));
  // Nor through a directory opened below it.
  OK(__wasi_path_open(READONLY, 0, "sub", __WASI_OFLAGS_DIRECTORY, ~0ull & ~0x42,
                      ~0ull, 0, &fd));
  FAILS(__WASI_ERRNO_NOTCAPABLE, try_open(fd, "new", __WASI_OFLAGS_CREAT));
}

// The name, type, inode and cookie of each entry.
struct entries {
  int n;
  char name[16][16];
  __wasi_dirent_t d[16];
};

static struct entries list(__wasi_fd_t dir, __wasi_dircookie_t from, int size) {
  static uint8_t buf[4096];
  struct entries all = {0};
  for (;;) {
    __wasi_size_t used, at = 0;
    OK(__wasi_fd_readdir(dir, buf, size, from, &used));
    CHECK(used <= (__wasi_size_t)size);
    while (used - at >= sizeof(__wasi_dirent_t)) {
      __wasi_dirent_t d;
      memcpy(&d, buf + at, sizeof d);
      if (used - at - sizeof d < d.d_namlen)
        break;
      CHECK(all.n < 16 && d.d_namlen < 16);
      memcpy(all.name[all.n], buf + at + sizeof d, d.d_namlen);
      all.d[all.n++] = d;
      at += sizeof d + d.d_namlen;
      from = d.d_next;
    }
    if (used < (__wasi_size_t)size)
      return all;
    CHECK(at > 0);
  }
}

static void fd_readdir(void) {
  __wasi_fd_t dir = scratch("scratch");
  __wasi_filestat_t self, file;
  OK(__wasi_fd_filestat_get(dir, &self));
  struct entries e = list(dir, 0, 4096);
  CHECK(e.n == 2 && !strcmp(e.name[0], ".") && !strcmp(e.name[1], ".."));
  CHECK(e.d[0].d_ino == self.ino);
  CHECK(e.d[0].d_type == __WASI_FILETYPE_DIRECTORY);
  create(dir, "file");
  OK(__wasi_path_filestat_get(dir, 0, "file", &file));
  e = list(dir, 0, 4096);
  CHECK(e.n == 3 && !strcmp(e.name[2], "file") && e.d[2].d_ino == file.ino);
  CHECK(e.d[2].d_type == __WASI_FILETYPE_REGULAR_FILE);
  e = list(dir, e.d[1].d_next, 4096);
  CHECK(e.n == 1 && !strcmp(e.name[0], "file"));

  // What comes and goes while one reads does not make one miss the rest.
  for (char name[] = "a"; name[0] < 'i'; name[0]++)
    create(dir, name);
  e = list(dir, 0, 64);
  CHECK(e.n == 11);
  __wasi_dircookie_t middle = e.d[5].d_next;
  OK(__wasi_path_unlink_file(dir, "a"));
  OK(__wasi_path_unlink_file(dir, "c"));
  OK(__wasi_path_unlink_file(dir, "e"));
  create(dir, "z");
  e = list(dir, middle, 64);
  CHECK(e.n == 5 && !strcmp(e.name[0], "d") && !strcmp(e.name[4], "z"));
  __wasi_size_t used;
  OK(__wasi_fd_readdir(dir, 0, 0, 0, &used));
  CHECK(used == 0);
  OK(__wasi_fd_readdir(dir, (void *)e.name, 16, ~0ull, &used));
  CHECK(used == 0);
}

static void fd_readdir_lots(void) {
  __wasi_fd_t dir = scratch("scratch");
  char name[16];
  for (int i = 0; i < 1000; i++) {
    snprintf(name, sizeof name, "file.%d", i);
    create(dir, name);
  }
  static uint8_t buf[256];
  int total = 0;
  __wasi_dircookie_t from = 0;
  __wasi_size_t used = sizeof buf;
  while (used == sizeof buf) {
    OK(__wasi_fd_readdir(dir, buf, sizeof buf, from, &used));
    __wasi_size_t at = 0;
    while (used - at >= sizeof(__wasi_dirent_t)) {
      __wasi_dirent_t d;
      memcpy(&d, buf + at, sizeof d);
      at += sizeof d + d.d_namlen;
      if (at > used)
        break;
      total++;
      from = d.d_next;
    }
  }
  CHECK(total == 1002);
  for (int i = 0; i < 1000; i++) {
    snprintf(name, sizeof name, "file.%d", i);
    OK(__wasi_path_unlink_file(dir, name));
  }
  OK(__wasi_path_remove_directory(ROOT, "scratch"));
}

const struct test path_cases[] = {
    {"dangling_symlink", dangling_symlink},
    {"fd_readdir", fd_readdir},
    {"fd_readdir_lots", fd_readdir_lots},
    {"interesting_paths", interesting_paths},
    {"nofollow_errors", nofollow_errors},
    {"path_exists", path_exists},
    {"path_filestat", path_filestat},
    {"path_link", path_link},
    {"path_open_create_existing", path_open_create_existing},
    {"path_open_dirfd_not_dir", path_open_dirfd_not_dir},
    {"path_open_missing", path_open_missing},
    {"path_open_nonblock", path_open_nonblock},
    {"path_open_preopen", path_open_preopen},
    {"path_open_read_without_rights", path_open_read_without_rights},
    {"path_open_read_write", path_open_read_write},
    {"path_rename", path_rename},
    {"path_rename_dir_trailing_slashes", path_rename_dir_trailing_slashes},
    {"path_symlink_trailing_slashes", path_symlink_trailing_slashes},
    {"read_only", read_only},
    {"readlink", readlink},
    {"remove_directory", remove_directory},
    {"symlink_create", symlink_create},
    {"symlink_filestat", symlink_filestat},
    {"symlink_loop", symlink_loop},
    {"truncation_rights", truncation_rights},
    {"unlink_file_trailing_slashes", unlink_file_trailing_slashes},
    {0},
};
