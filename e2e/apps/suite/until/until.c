// until: computes until there is something to read, and says for how many
// rounds and what came out. With a number it computes that many, which must
// come to the same. So a test has a program that runs for as long as the test
// takes, on a machine of any speed. A second number is how many MiB of memory it
// has written before; it says when it has.
#include <poll.h>

#include "../suite.h"

int main(int argc, char **argv) {
	long rounds = size_arg(argc, argv, -1), n = 0;
	uint64_t state = 1, sum = 1;
	struct pollfd in = {.fd = 0, .events = POLLIN};
	size_t size = (size_t)size_arg(argc - 1, argv + 1, 0) << 20;
	uint64_t *memory = malloc(size + 1), filler = 7;
	if (!memory) {
		perror("memory");
		return 1;
	}
	for (size_t i = 0; i < size / 8; i++)
		memory[i] = next_random(&filler);
	if (size > 0) {
		puts("filled");
		fflush(stdout);
	}
	while (rounds < 0 ? poll(&in, 1, 0) == 0 : n < rounds) {
		for (int i = 0; i < 1 << 20; i++)
			sum = mix(sum, next_random(&state));
		n++;
	}
	for (size_t i = 0; i < size / 8; i++)
		sum = mix(sum, memory[i]);
	printf("%ld rounds %016llx\n", n, (unsigned long long)sum);
	return 0;
}
