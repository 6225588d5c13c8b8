// threaded: an interpreter whose instructions are functions that go on to one
// another by tail calls.
#include "../../apps/suite/suite.h"

typedef struct machine machine;
typedef uint64_t (*instruction)(machine *m, uint64_t sum, long left);

struct machine {
	instruction program[4];
	long at;
	uint64_t seed;
};

#define NEXT(sum, left) __attribute__((musttail)) return m->program[++m->at & 3](m, sum, left)

static uint64_t draw(machine *m, uint64_t sum, long left) { NEXT(sum + next_random(&m->seed), left); }

static uint64_t stir(machine *m, uint64_t sum, long left) { NEXT(mix(sum, (uint64_t)left), left); }

static uint64_t turn(machine *m, uint64_t sum, long left) { NEXT(sum << 7 | sum >> 57, left); }

static uint64_t again(machine *m, uint64_t sum, long left) {
	if (left == 0)
		return sum;
	NEXT(sum, left - 1);
}

int main(int argc, char **argv) {
	machine m = {{draw, stir, turn, again}, 0, 9};
	long n = size_arg(argc, argv, 100);
	printf("%016llx\n", (unsigned long long)m.program[0](&m, 1, n));
	return 0;
}
