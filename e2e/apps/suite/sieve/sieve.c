// sieve: the sieve of Eratosthenes, again and again over the same memory.
#include <string.h>

#include "../suite.h"

static unsigned char composite[1 << 16];

int main(int argc, char **argv) {
	long rounds = size_arg(argc, argv, 1), primes = 0;
	int limit = rounds == 1 ? 2000 : (int)sizeof composite;
	for (long r = 0; r < rounds; r++) {
		memset(composite, 0, sizeof composite);
		primes = 0;
		for (int i = 2; i < limit; i++) {
			if (composite[i])
				continue;
			primes++;
			for (int j = i + i; j < limit; j += i)
				composite[j] = 1;
		}
	}
	printf("%ld primes below %d\n", primes, limit);
	return 0;
}
