// quicksort: recursion, and a comparison called through a pointer.
#include "../suite.h"

typedef int (*order)(const void *, const void *);

static int up(const void *a, const void *b) {
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

static int down(const void *a, const void *b) { return up(b, a); }

static void sort(uint32_t *v, long n, order compare) {
	while (n > 1) {
		uint32_t pivot = v[n / 2];
		long i = 0, j = n - 1;
		while (i <= j) {
			while (compare(&v[i], &pivot) < 0)
				i++;
			while (compare(&v[j], &pivot) > 0)
				j--;
			if (i <= j) {
				uint32_t t = v[i];
				v[i++] = v[j];
				v[j--] = t;
			}
		}
		sort(v, j + 1, compare);
		v += i;
		n -= i;
	}
}

int main(int argc, char **argv) {
	long n = size_arg(argc, argv, 300);
	uint32_t *v = malloc((size_t)n * sizeof *v);
	if (!v)
		return 1;
	uint64_t seed = 42, sum = 1;
	order orders[] = {up, down};
	for (int round = 0; round < 2; round++) {
		for (long i = 0; i < n; i++)
			v[i] = (uint32_t)next_random(&seed);
		sort(v, n, orders[round]);
		for (long i = 0; i < n; i++) {
			if (i && orders[round](&v[i - 1], &v[i]) > 0)
				return 1;
			sum = mix(sum, v[i]);
		}
	}
	printf("%016llx\n", (unsigned long long)sum);
	return 0;
}
