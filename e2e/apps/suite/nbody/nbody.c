// nbody: planets around a sun; floating point in a small loop.
#include <math.h>

#include "../suite.h"

#define BODIES 5

typedef struct {
	double at[3], speed[3], mass;
} body;

static void advance(body *b, double dt) {
	for (int i = 0; i < BODIES; i++) {
		for (int j = i + 1; j < BODIES; j++) {
			double d[3], square = 0;
			for (int k = 0; k < 3; k++) {
				d[k] = b[i].at[k] - b[j].at[k];
				square += d[k] * d[k];
			}
			double pull = dt / (square * sqrt(square));
			for (int k = 0; k < 3; k++) {
				b[i].speed[k] -= d[k] * b[j].mass * pull;
				b[j].speed[k] += d[k] * b[i].mass * pull;
			}
		}
	}
	for (int i = 0; i < BODIES; i++)
		for (int k = 0; k < 3; k++)
			b[i].at[k] += dt * b[i].speed[k];
}

static double energy(const body *b) {
	double e = 0;
	for (int i = 0; i < BODIES; i++) {
		for (int k = 0; k < 3; k++)
			e += 0.5 * b[i].mass * b[i].speed[k] * b[i].speed[k];
		for (int j = i + 1; j < BODIES; j++) {
			double square = 0;
			for (int k = 0; k < 3; k++)
				square += (b[i].at[k] - b[j].at[k]) * (b[i].at[k] - b[j].at[k]);
			e -= b[i].mass * b[j].mass / sqrt(square);
		}
	}
	return e;
}

int main(int argc, char **argv) {
	long n = size_arg(argc, argv, 200);
	body b[BODIES];
	uint64_t seed = 7;
	for (int i = 0; i < BODIES; i++) {
		for (int k = 0; k < 3; k++) {
			b[i].at[k] = i * 5 + (double)(next_random(&seed) % 1000) / 500;
			b[i].speed[k] = i ? (double)(next_random(&seed) % 1000) / 2000 - 0.25 : 0;
		}
		b[i].mass = i ? 0.01 * i : 40;
	}
	printf("%.12f\n", energy(b));
	for (long i = 0; i < n; i++)
		advance(b, 0.001);
	printf("%.12f\n", energy(b));
	return 0;
}
