// What the programs of the suite share: a size from the command line, a random
// generator that is the same everywhere, and a checksum.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

// size_arg is the first argument, or what a short run takes.
static inline long size_arg(int argc, char **argv, long otherwise) {
	return argc > 1 ? strtol(argv[1], NULL, 10) : otherwise;
}

// next_random is xorshift64 (G. Marsaglia, "Xorshift RNGs", 2003).
static inline uint64_t next_random(uint64_t *state) {
	uint64_t x = *state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

// mix adds a value to a checksum.
static inline uint64_t mix(uint64_t sum, uint64_t v) {
	sum = (sum ^ v) * 0x9e3779b97f4a7c15u;
	return sum ^ sum >> 29;
}
