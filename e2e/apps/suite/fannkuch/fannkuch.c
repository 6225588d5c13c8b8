// fannkuch: permutations of a few numbers, and prefixes of them turned over.
#include <string.h>

#include "../suite.h"

int main(int argc, char **argv) {
	int n = (int)size_arg(argc, argv, 6);
	if (n < 2 || n > 12)
		return 2;
	int perm[12], work[12], count[12], most = 0, sign = 1;
	long sum = 0;
	for (int i = 0; i < n; i++)
		perm[i] = i;
	memset(count, 0, sizeof count);
	for (;;) {
		memcpy(work, perm, sizeof work);
		int flips = 0;
		for (int first = work[0]; first != 0; first = work[0]) {
			for (int a = 0, b = first; a < b; a++, b--) {
				int t = work[a];
				work[a] = work[b];
				work[b] = t;
			}
			flips++;
		}
		if (flips > most)
			most = flips;
		sum += sign * flips;
		sign = -sign;
		// The next permutation in the order of prefix rotations.
		int i = 1;
		for (;; i++) {
			if (i >= n) {
				printf("%ld\npfannkuchen(%d) = %d\n", sum, n, most);
				return 0;
			}
			int t = perm[0];
			for (int j = 0; j < i; j++)
				perm[j] = perm[j + 1];
			perm[i] = t;
			if (++count[i] <= i)
				break;
			count[i] = 0;
		}
	}
}
