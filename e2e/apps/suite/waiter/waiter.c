// waiter: blocks on its input, sleeps, and answers each line.
#include <string.h>
#include <time.h>

#include "../suite.h"

int main(void) {
	char line[256];
	uint64_t sum = 1;
	long lines = 0;
	while (fgets(line, sizeof line, stdin)) {
		size_t n = strcspn(line, "\n");
		line[n] = 0;
		for (size_t i = 0; i < n; i++)
			sum = mix(sum, (unsigned char)line[i]);
		if (strncmp(line, "sleep ", 6) == 0) {
			struct timespec t = {0, strtol(line + 6, NULL, 10) * 1000000};
			nanosleep(&t, NULL);
		}
		printf("%ld %s %016llx\n", ++lines, line, (unsigned long long)sum);
		fflush(stdout);
	}
	printf("%ld lines\n", lines);
	return 0;
}
