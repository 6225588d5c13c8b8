// notes: keeps files in /data as its input says, a line at a time.
//
//	append FILE WORD    size FILE    sum FILE    cat FILE
#include <errno.h>
#include <stdio.h>
#include <string.h>

int main(void) {
	char line[300], verb[16], name[128], word[128], path[160];
	while (fgets(line, sizeof line, stdin)) {
		*word = 0;
		if (sscanf(line, "%15s %127s %127s", verb, name, word) < 2) {
			printf("what?\n");
			fflush(stdout);
			continue;
		}
		snprintf(path, sizeof path, "/data/%s", name);
		FILE *f = fopen(path, strcmp(verb, "append") == 0 ? "a" : "r");
		if (!f) {
			printf("%s\n", strerror(errno));
			fflush(stdout);
			continue;
		}
		errno = 0;
		if (strcmp(verb, "append") == 0) {
			if (fprintf(f, "%s\n", word) > 0 && fflush(f) == 0)
				printf("ok\n");
		} else if (strcmp(verb, "size") == 0) {
			fseek(f, 0, SEEK_END);
			printf("%ld bytes\n", ftell(f));
		} else {
			long sum = 0;
			for (int c; (c = getc(f)) != EOF; sum += c)
				if (strcmp(verb, "cat") == 0)
					putchar(c == '\n' ? '|' : c);
			if (ferror(f))
				printf("%s\n", strerror(errno));
			else if (strcmp(verb, "sum") == 0)
				printf("sum %ld\n", sum);
			else
				printf("\n");
		}
		fclose(f);
		fflush(stdout);
	}
	return 0;
}
