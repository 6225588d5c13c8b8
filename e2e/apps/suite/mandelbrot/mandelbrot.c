// mandelbrot: a loop whose end depends on what it computes, within two others.
#include "../suite.h"

int main(int argc, char **argv) {
	long n = size_arg(argc, argv, 24);
	uint64_t sum = 1;
	for (long y = 0; y < n; y++) {
		for (long x = 0; x < n; x++) {
			double cr = 3.0 * x / n - 2, ci = 2.0 * y / n - 1, r = 0, i = 0;
			int steps = 0;
			while (steps < 100 && r * r + i * i < 4) {
				double t = r * r - i * i + cr;
				i = 2 * r * i + ci;
				r = t;
				steps++;
			}
			sum = mix(sum, (uint64_t)steps);
		}
	}
	printf("%ld x %ld: %016llx\n", n, n, (unsigned long long)sum);
	return 0;
}
