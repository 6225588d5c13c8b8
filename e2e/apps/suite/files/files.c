// files: writes files, reads them back, renames and removes them.
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../suite.h"

static int fail(const char *what) {
	perror(what);
	return 1;
}

int main(int argc, char **argv) {
	long n = size_arg(argc, argv, 3);
	uint64_t seed = 5, sum = 1;
	char name[64], other[64], line[256];
	for (long i = 0; i < n; i++) {
		snprintf(name, sizeof name, "/data/part-%ld", i);
		FILE *f = fopen(name, "w");
		if (!f)
			return fail(name);
		for (long j = 0; j < 20 + i; j++)
			fprintf(f, "%ld %016llx\n", j, (unsigned long long)next_random(&seed));
		if (fclose(f) != 0)
			return fail(name);
	}
	for (long i = n - 1; i >= 0; i--) {
		snprintf(name, sizeof name, "/data/part-%ld", i);
		snprintf(other, sizeof other, "/data/done-%ld", i);
		if (rename(name, other) != 0)
			return fail(name);
		FILE *f = fopen(other, "r");
		if (!f)
			return fail(other);
		fseek(f, 100, SEEK_SET);
		while (fgets(line, sizeof line, f))
			for (char *c = line; *c; c++)
				sum = mix(sum, (unsigned char)*c);
		fclose(f);
		struct stat st;
		if (stat(other, &st) != 0)
			return fail(other);
		sum = mix(sum, (uint64_t)st.st_size);
		if (unlink(other) != 0)
			return fail(other);
	}
	printf("%ld files: %016llx\n", n, (unsigned long long)sum);
	return 0;
}
