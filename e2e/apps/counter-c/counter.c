/*
 * The counter in C: the commands and the answers are those of ../counter, save
 * that an interval is given as a whole number with the unit ms or s.
 *
 *     clang --target=wasm32-wasi -O2 -mexec-model=reactor -I node/guest \
 *           -o counter-c.wasm e2e/apps/counter-c/counter.c
 */
#include "meshnode.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TICKER = 1 }; /* the id of the only timer */

static long long count;

/* Reads the number text begins with, and what follows it. */
static bool parse_number(const char *text, long long *n, const char **rest) {
	char *end;
	*n = strtoll(text, &end, 10);
	*rest = end;
	return end != text;
}

/* Carries out one command; the result is NULL or what is wrong with it. */
static const char *command(char *line) {
	long long n;
	const char *rest;
	char *verb = strtok(line, " \n");
	char *arg = strtok(NULL, " \n");

	if (verb == NULL)
		return "no command: want add N, get, reset, every INTERVAL or stop";
	if (arg == NULL)
		arg = "";
	if (strcmp(verb, "add") == 0) {
		if (!parse_number(arg, &n, &rest) || *rest != '\0')
			return "add: want a whole number";
		count = (long long)((unsigned long long)count + (unsigned long long)n);
		return NULL;
	}
	if (strcmp(verb, "get") == 0)
		return NULL;
	if (strcmp(verb, "reset") == 0) {
		count = 0;
		return NULL;
	}
	if (strcmp(verb, "every") == 0) {
		long long unit = 0;
		if (parse_number(arg, &n, &rest)) {
			if (strcmp(rest, "ms") == 0)
				unit = 1000000;
			else if (strcmp(rest, "s") == 0)
				unit = 1000000000;
		}
		if (unit == 0 || n <= 0 || n > INT64_MAX / unit)
			return "every: want an interval such as 100ms";
		if (meshnode_timer_set(TICKER, n * unit, n * unit) != MESHNODE_OK)
			return "every: the timer was refused";
		return NULL;
	}
	if (strcmp(verb, "stop") == 0) {
		meshnode_timer_cancel(TICKER);
		return NULL;
	}
	return "unknown command: want add N, get, reset, every INTERVAL or stop";
}

int32_t meshnode_event(int32_t kind, int64_t id, int32_t len) {
	char text[128];
	const char *wrong;

	(void)id;
	if (kind == MESHNODE_TIMER) {
		count++;
		return 0;
	}
	if ((size_t)len >= sizeof text) {
		wrong = "command too long";
	} else {
		text[meshnode_event_read(text, (size_t)len, 0)] = '\0';
		wrong = command(text);
	}
	if (kind == MESHNODE_CALL) {
		if (wrong != NULL)
			meshnode_reply(wrong, strlen(wrong));
		else
			meshnode_reply(text, (size_t)snprintf(text, sizeof text, "%lld", count));
	}
	return wrong != NULL;
}
