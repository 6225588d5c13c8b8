// The cases of one program each: main runs those named in its arguments, or
// lists all of them.
#include "cases.h"

static const struct test *const groups[] = {raw_cases, path_cases, libc_cases};

int main(int argc, char **argv) {
  if (argc < 2) {
    for (int g = 0; g < 3; g++)
      for (const struct test *t = groups[g]; t->name; t++)
        puts(t->name);
    return 0;
  }
  for (int g = 0; g < 3; g++)
    for (const struct test *t = groups[g]; t->name; t++)
      if (strcmp(t->name, argv[1]) == 0) {
        t->run();
        return 0;
      }
  fprintf(stderr, "no case %s\n", argv[1]);
  return 2;
}
