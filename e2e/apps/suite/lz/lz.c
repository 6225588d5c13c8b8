// lz: compression in the manner of LZ4: literals, and matches found by a hash of
// four bytes, with lengths in nibbles. What comes out is taken apart again.
#include <string.h>

#include "../suite.h"

#define MOST (1 << 20)

static unsigned char text[MOST], packed[MOST + MOST / 4 + 64], again[MOST];
static uint32_t table[1 << 12];

static uint32_t four(const unsigned char *p) {
	uint32_t v;
	memcpy(&v, p, 4);
	return v;
}

static unsigned char *put_length(unsigned char *out, size_t n) {
	for (; n >= 255; n -= 255)
		*out++ = 255;
	*out++ = (unsigned char)n;
	return out;
}

static unsigned char *put(unsigned char *out, const unsigned char *lit, size_t literals, size_t match, size_t distance) {
	unsigned char *token = out++;
	*token = (unsigned char)((literals < 15 ? literals : 15) << 4);
	if (literals >= 15)
		out = put_length(out, literals - 15);
	memcpy(out, lit, literals);
	out += literals;
	if (!match)
		return out;
	*out++ = (unsigned char)distance;
	*out++ = (unsigned char)(distance >> 8);
	match -= 4;
	*token |= match < 15 ? match : 15;
	return match >= 15 ? put_length(out, match - 15) : out;
}

static size_t compress(const unsigned char *in, size_t n) {
	unsigned char *out = packed;
	size_t literal = 0, i = 0;
	memset(table, 0, sizeof table);
	while (i + 12 < n) {
		uint32_t h = four(in + i) * 2654435761u >> 20;
		size_t from = table[h];
		table[h] = (uint32_t)i;
		if (from >= i || i - from > 65535 || four(in + from) != four(in + i)) {
			i++;
			continue;
		}
		size_t len = 4;
		while (i + len + 5 < n && in[from + len] == in[i + len])
			len++;
		out = put(out, in + literal, i - literal, len, i - from);
		i += len;
		literal = i;
	}
	out = put(out, in + literal, n - literal, 0, 0);
	return (size_t)(out - packed);
}

static size_t get_length(const unsigned char **in) {
	size_t n = 0;
	unsigned char c;
	do
		n += c = *(*in)++;
	while (c == 255);
	return n;
}

static size_t expand(size_t n) {
	const unsigned char *in = packed, *end = packed + n;
	size_t out = 0;
	for (;;) {
		unsigned token = *in++;
		size_t literals = token >> 4;
		if (literals == 15)
			literals += get_length(&in);
		memcpy(again + out, in, literals);
		in += literals;
		out += literals;
		if (in >= end)
			return out;
		size_t distance = in[0] | (size_t)in[1] << 8, match = token & 15;
		in += 2;
		if (match == 15)
			match += get_length(&in);
		for (match += 4; match; match--, out++)
			again[out] = again[out - distance];
	}
}

int main(int argc, char **argv) {
	size_t n = (size_t)size_arg(argc, argv, 3000);
	if (n > MOST)
		return 2;
	static const char *words[] = {"worker ", "moves ", "to ", "another ", "node, ", "and ", "goes ", "on. "};
	uint64_t seed = 9;
	for (size_t i = 0; i < n;) {
		const char *w = words[next_random(&seed) % 8];
		if (next_random(&seed) % 16 == 0)
			text[i++] = (unsigned char)next_random(&seed);
		for (; *w && i < n; w++)
			text[i++] = (unsigned char)*w;
	}
	size_t size = 0;
	for (long rounds = argc > 2 ? strtol(argv[2], NULL, 10) : 1; rounds > 0; rounds--) {
		size = compress(text, n);
		if (expand(size) != n || memcmp(text, again, n) != 0)
			return 1;
	}
	uint64_t sum = 1;
	for (size_t i = 0; i < size; i++)
		sum = mix(sum, packed[i]);
	printf("%zu bytes in %zu: %016llx\n", n, size, (unsigned long long)sum);
	return 0;
}
