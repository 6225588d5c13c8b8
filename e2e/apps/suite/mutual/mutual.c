// mutual: functions that call one another, deep, with something to remember at
// every level.
#include "../suite.h"

static __attribute__((noinline)) uint64_t even(long n, uint64_t a, double d);
static __attribute__((noinline)) uint64_t third(long n, uint64_t a, float f);

static __attribute__((noinline)) uint64_t odd(long n, uint64_t a, int b) {
	if (n == 0)
		return a + (uint64_t)b;
	uint64_t r = third(n - 1, mix(a, (uint64_t)n), (float)b);
	return mix(r, a ^ (uint64_t)b);
}

static __attribute__((noinline)) uint64_t even(long n, uint64_t a, double d) {
	if (n == 0)
		return a + (uint64_t)d;
	uint64_t r = odd(n - 1, mix(a, (uint64_t)n), (int)d % 1000 + 1);
	return mix(r, a + (uint64_t)(d * 2));
}

static __attribute__((noinline)) uint64_t third(long n, uint64_t a, float f) {
	if (n == 0)
		return a + (uint64_t)f;
	uint64_t r = even(n - 1, mix(a, (uint64_t)n), f / 2 + 3);
	return mix(r, a - (uint64_t)f);
}

int main(int argc, char **argv) {
	long depth = size_arg(argc, argv, 300), rounds = argc > 2 ? strtol(argv[2], NULL, 10) : 2;
	uint64_t sum = 1;
	for (long i = 0; i < rounds; i++)
		sum = mix(sum, even(depth, sum, 1.5));
	printf("%ld deep: %016llx\n", depth, (unsigned long long)sum);
	return 0;
}
