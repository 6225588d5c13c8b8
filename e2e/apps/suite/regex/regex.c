// regex: a matcher of regular expressions that goes back when it has to:
// literals, '.', classes, '*', '+', '?', '|' and groups, by recursion.
#include <string.h>

#include "../suite.h"

typedef struct {
	const char *re; // what is left of the expression
	const char *rest[8]; // where to go on behind each open group
	int depth;
} state;

static const char *text_end;
static long steps;

static int match(state s, const char *text, const char **end);

// item_end returns the end of the first item of an expression.
static const char *item_end(const char *re) {
	if (*re == '(') {
		int depth = 1;
		for (re++; depth; re++)
			depth += (*re == '(') - (*re == ')');
		return re;
	}
	if (*re == '[')
		return strchr(re, ']') + 1;
	return re + 1;
}

static int one(const char *re, char c) {
	if (*re == '.')
		return 1;
	if (*re != '[')
		return *re == c;
	int no = re[1] == '^', in = 0;
	for (re += 1 + no; *re != ']'; re++) {
		if (re[1] == '-' && re[2] != ']') {
			in |= c >= re[0] && c <= re[2];
			re += 2;
		} else {
			in |= *re == c;
		}
	}
	return in != no;
}

// group tries the alternatives between from and to, and then what follows.
static int group(state s, const char *from, const char *to, const char *after, const char *text, const char **end) {
	for (const char *alt = from;;) {
		const char *bar = alt;
		while (bar < to && *bar != '|')
			bar = item_end(bar);
		state t = s;
		if (t.depth == 8)
			return 0;
		t.rest[t.depth++] = after;
		t.re = alt;
		if (match(t, text, end))
			return 1;
		if (bar >= to)
			return 0;
		alt = bar + 1;
	}
}

static int match(state s, const char *text, const char **end) {
	for (;;) {
		steps++;
		if (*s.re == 0) {
			*end = text;
			return 1;
		}
		if (*s.re == ')' || *s.re == '|') {
			s.re = s.rest[--s.depth];
			continue;
		}
		const char *item = s.re, *after = item_end(item);
		char times = *after;
		int many = times == '*' || times == '+', maybe = times == '*' || times == '?';
		const char *next = after + (many || maybe);
		if (*item == '(') {
			if (group(s, item + 1, after - 1, many ? item : next, text, end) && (!many || *end > text))
				return 1;
			if (!maybe && !(many && s.depth > 0))
				return 0;
			s.re = next;
			continue;
		}
		if (!many && !maybe) {
			if (text == text_end || !one(item, *text))
				return 0;
			text++;
			s.re = next;
			continue;
		}
		const char *most = text;
		while (most < text_end && one(item, *most) && (many || most == text))
			most++;
		s.re = next;
		for (; most >= text + (times == '+'); most--)
			if (match(s, most, end))
				return 1;
		return 0;
	}
}

int main(int argc, char **argv) {
	long rounds = size_arg(argc, argv, 1), found = 0;
	static const char *expressions[] = {
		"[a-z]+ing", "(wor|mov)[a-z]*", "n.*e", "[0-9]+\\.?", "(a|b|c)(d|e|f)", "x*y*z", "[^ ]+ [^ ]+ e",
	};
	static const char text[] =
		"a running worker is moving from node to node while bees hum and 42 wires sing; "
		"its memory follows, being small or large, and nothing it was doing is lost";
	text_end = text + sizeof text - 1;
	uint64_t sum = 1;
	for (long r = 0; r < rounds; r++) {
		for (size_t i = 0; i < sizeof expressions / sizeof *expressions; i++) {
			for (const char *p = text; p < text_end; p++) {
				const char *end = NULL;
				state s = {.re = expressions[i]};
				if (match(s, p, &end)) {
					found++;
					sum = mix(sum, (uint64_t)(p - text) << 32 | (uint64_t)(end - text));
				}
			}
		}
	}
	printf("%ld matches in %ld steps: %016llx\n", found, steps, (unsigned long long)sum);
	return 0;
}
