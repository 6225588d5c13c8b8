// matmul: the product of two matrices, three loops in one another.
#include "../suite.h"

#define MOST 256

static double a[MOST][MOST], b[MOST][MOST], c[MOST][MOST];

int main(int argc, char **argv) {
	int n = (int)size_arg(argc, argv, 12), rounds = argc > 2 ? atoi(argv[2]) : 1;
	if (n > MOST)
		return 2;
	for (int i = 0; i < n; i++)
		for (int j = 0; j < n; j++) {
			a[i][j] = (i * 3 + j * 7) % 11;
			b[i][j] = (i * 5 + j * 2) % 13;
		}
	for (int r = 0; r < rounds; r++)
		for (int i = 0; i < n; i++)
			for (int j = 0; j < n; j++) {
				double sum = r;
				for (int k = 0; k < n; k++)
					sum += a[i][k] * b[k][j];
				c[i][j] = sum;
			}
	double trace = 0;
	for (int i = 0; i < n; i++)
		trace += c[i][i] * (i + 1);
	printf("%.1f\n", trace);
	return 0;
}
