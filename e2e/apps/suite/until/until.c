// until: computes until there is something to read, and says for how many
// rounds and what came out. With a number it computes that many, which must
// come to the same. So a test has a program that runs for as long as the test
// takes, on a machine of any speed.
#include <poll.h>

#include "../suite.h"

int main(int argc, char **argv) {
	long rounds = size_arg(argc, argv, -1), n = 0;
	uint64_t state = 1, sum = 1;
	struct pollfd in = {.fd = 0, .events = POLLIN};
	while (rounds < 0 ? poll(&in, 1, 0) == 0 : n < rounds) {
		for (int i = 0; i < 1 << 20; i++)
			sum = mix(sum, next_random(&state));
		n++;
	}
	printf("%ld rounds %016llx\n", n, (unsigned long long)sum);
	return 0;
}
