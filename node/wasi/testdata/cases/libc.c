// Cases through the C library, as most programs come by their files.
#include "cases.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static void args(void) {
  // main looked at the first; environ is what the host gave.
  CHECK(strcmp(getenv("COLOUR"), "blue and green") == 0);
  CHECK(strcmp(getenv("EMPTY"), "") == 0);
  CHECK(getenv("NONE") == 0);
}

static void fopen_with_access(void) {
  char text[16] = {0};
  FILE *f = fopen("/given/text", "r");
  CHECK(f && fread(text, 1, 16, f) == 5 && strcmp(text, "hello") == 0);
  CHECK(feof(f) && fclose(f) == 0);
  CHECK(fopen("/ro/text", "w") == 0 || errno == ENOTCAPABLE);
}

static void fopen_with_no_access(void) {
  CHECK(fopen("/outside/../../etc/passwd", "r") == 0);
  CHECK(errno == ENOENT || errno == EPERM || errno == ENOTCAPABLE);
}

static void fdopendir_with_access(void) {
  int fd = open("/given/two", O_RDONLY | O_DIRECTORY);
  CHECK(fd >= 0);
  DIR *d = fdopendir(fd);
  CHECK(d);
  int seen = 0;
  for (struct dirent *e; (e = readdir(d));) {
    if (e->d_name[0] == '.')
      continue;
    struct stat st;
    CHECK(fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0);
    CHECK(st.st_ino == e->d_ino);
    seen |= !strcmp(e->d_name, "file-0") ? 1 : !strcmp(e->d_name, "file-1") ? 2 : 4;
  }
  CHECK(seen == 3);
  closedir(d);
}

static void lseek_case(void) {
  int fd = open("/given/text", O_RDONLY);
  CHECK(fd >= 0);
  CHECK(lseek(fd, 0, SEEK_CUR) == 0 && lseek(fd, 2, SEEK_CUR) == 2);
  CHECK(lseek(fd, 0, SEEK_END) == 5 && lseek(fd, -3, SEEK_END) == 2);
  char c;
  CHECK(read(fd, &c, 1) == 1 && c == 'l');
  CHECK(lseek(fd, -9, SEEK_SET) == -1 && errno == EINVAL);
  CHECK(close(fd) == 0);
}

static void pread_pwrite(void) {
  int fd = open("/new", O_CREAT | O_RDWR, 0666);
  CHECK(fd >= 0 && write(fd, "0123456789", 10) == 10);
  char buf[4];
  CHECK(pread(fd, buf, 4, 3) == 4 && memcmp(buf, "3456", 4) == 0);
  CHECK(pwrite(fd, "xy", 2, 4) == 2 && lseek(fd, 0, SEEK_CUR) == 10);
  CHECK(pread(fd, buf, 4, 3) == 4 && memcmp(buf, "3xy6", 4) == 0);
}

static void pwrite_with_append(void) {
  int fd = open("/new", O_CREAT | O_TRUNC | O_WRONLY | O_APPEND, 0666);
  CHECK(fd >= 0 && write(fd, "ab", 2) == 2);
  CHECK(lseek(fd, 0, SEEK_SET) == 0 && write(fd, "cd", 2) == 2);
  CHECK(lseek(fd, 0, SEEK_CUR) == 4);
  CHECK(pwrite(fd, "xyz", 3, 0) == 3 && lseek(fd, 0, SEEK_CUR) == 4);
  CHECK(lseek(fd, 0, SEEK_END) == 4);
}

static void stat_dev_ino(void) {
  struct stat a, b;
  CHECK(stat("/given/text", &a) == 0 && stat("/given/two/file-0", &b) == 0);
  CHECK(a.st_dev == b.st_dev && a.st_ino != b.st_ino);
  CHECK(S_ISREG(a.st_mode) && a.st_size == 5 && a.st_mtim.tv_sec == 1000);
}

static void files(void) {
  // A few megabytes, written and read in pieces that fit no page.
  FILE *f = fopen("/big", "w+");
  CHECK(f);
  uint32_t x = 1;
  for (int i = 0; i < 300000; i++) {
    x = x * 1664525 + 1013904223;
    CHECK(fwrite(&x, 1, 3 + (i & 1), f) == 3 + (size_t)(i & 1));
  }
  rewind(f);
  x = 1;
  for (int i = 0; i < 300000; i++) {
    x = x * 1664525 + 1013904223;
    uint32_t y = 0, mask = i & 1 ? 0xffffffff : 0xffffff;
    CHECK(fread(&y, 1, 3 + (i & 1), f) == 3 + (size_t)(i & 1));
    CHECK(y == (x & mask));
  }
  CHECK(fclose(f) == 0);
  CHECK(mkdir("/made", 0777) == 0 && rename("/big", "/made/big") == 0);
  CHECK(symlink("big", "/made/link") == 0);
  char target[8] = {0};
  CHECK(readlink("/made/link", target, 8) == 3 && !strcmp(target, "big"));
  CHECK(truncate("/made/link", 4097) == 0);
  struct stat st;
  CHECK(stat("/made/big", &st) == 0 && st.st_size == 4097);
  CHECK(unlink("/made/link") == 0 && rmdir("/made") == -1 && errno == ENOTEMPTY);
  CHECK(unlink("/made/big") == 0 && rmdir("/made") == 0);
}

static void sleeps(void) {
  struct timespec a, b, t = {0, 3000000};
  CHECK(clock_gettime(CLOCK_MONOTONIC, &a) == 0);
  CHECK(nanosleep(&t, 0) == 0);
  CHECK(clock_gettime(CLOCK_MONOTONIC, &b) == 0);
  long took = (b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec;
  CHECK(took >= 3000000);
}

// The host pushes "first line\n", "second", " half\n" and closes.
static void lines(void) {
  char line[64];
  CHECK(fgets(line, sizeof line, stdin) && !strcmp(line, "first line\n"));
  struct pollfd p = {0, POLLIN, 0};
  CHECK(poll(&p, 1, -1) == 1);
  CHECK(fgets(line, sizeof line, stdin) && !strcmp(line, "second half\n"));
  CHECK(!fgets(line, sizeof line, stdin) && feof(stdin));
  for (int i = 0; i < 1000; i++)
    printf("line %d\n", i);
}

const struct test libc_cases[] = {
    {"args", args},
    {"fdopendir-with-access", fdopendir_with_access},
    {"files", files},
    {"fopen-with-access", fopen_with_access},
    {"fopen-with-no-access", fopen_with_no_access},
    {"lines", lines},
    {"lseek", lseek_case},
    {"pread-pwrite", pread_pwrite},
    {"pwrite-with-append", pwrite_with_append},
    {"sleeps", sleeps},
    {"stat-dev-ino", stat_dev_ino},
    {0},
};
