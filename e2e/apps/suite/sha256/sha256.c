// sha256: the hash of FIPS 180-4 over its own output.
#include <string.h>

#include "../suite.h"

static uint32_t k[64], initial[8];

// root_bits is the first 32 bits of the fraction of the given root of n.
static uint32_t root_bits(int n, int root) {
	// Bit by bit, with integers wide enough for the third power.
	unsigned __int128 target = n;
	target <<= root == 2 ? 64 : 96;
	uint64_t r = 0;
	for (int bit = 35; bit >= 0; bit--) {
		uint64_t t = r | 1ull << bit;
		unsigned __int128 power = (unsigned __int128)t * t;
		if (root == 3)
			power *= t;
		if (power <= target)
			r = t;
	}
	return (uint32_t)r;
}

static void constants(void) {
	int found = 0;
	for (int n = 2; found < 64; n++) {
		int prime = 1;
		for (int d = 2; d * d <= n; d++)
			if (n % d == 0)
				prime = 0;
		if (!prime)
			continue;
		if (found < 8)
			initial[found] = root_bits(n, 2);
		k[found++] = root_bits(n, 3);
	}
}

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void block(uint32_t h[8], const unsigned char *p) {
	uint32_t w[64];
	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
	for (int i = 16; i < 64; i++) {
		uint32_t a = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
		uint32_t b = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
		w[i] = w[i - 16] + a + w[i - 7] + b;
	}
	uint32_t s[8];
	memcpy(s, h, sizeof s);
	for (int i = 0; i < 64; i++) {
		uint32_t e = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
		uint32_t t = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
		uint32_t a = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
		uint32_t u = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
		memmove(s + 1, s, 7 * sizeof *s);
		s[4] += t;
		s[0] = t + u;
	}
	for (int i = 0; i < 8; i++)
		h[i] += s[i];
}

// hash sets out to the hash of n bytes, n at most 55: one block.
static void hash(const unsigned char *p, size_t n, unsigned char out[32]) {
	unsigned char last[64] = {0};
	uint32_t h[8];
	memcpy(h, initial, sizeof h);
	memcpy(last, p, n);
	last[n] = 0x80;
	last[62] = (unsigned char)(n * 8 >> 8);
	last[63] = (unsigned char)(n * 8);
	block(h, last);
	for (int i = 0; i < 32; i++)
		out[i] = (unsigned char)(h[i / 4] >> (24 - i % 4 * 8));
}

int main(int argc, char **argv) {
	long n = size_arg(argc, argv, 5);
	unsigned char sum[32];
	constants();
	hash((const unsigned char *)"abc", 3, sum);
	for (int i = 0; i < 32; i++)
		printf("%02x", sum[i]);
	printf("\n");
	for (long i = 0; i < n; i++)
		hash(sum, sizeof sum, sum);
	for (int i = 0; i < 32; i++)
		printf("%02x", sum[i]);
	printf("\n");
	return 0;
}
