// fib: recursion and nothing else, two calls in each.
#include "../suite.h"

static __attribute__((noinline)) uint32_t fib(uint32_t n) {
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

int main(int argc, char **argv) {
	long n = size_arg(argc, argv, 20);
	printf("fib %ld = %u\n", n, fib((uint32_t)n));
	return 0;
}
