// binarytrees: many small allocations, made and freed by recursion.
#include "../suite.h"

typedef struct node {
	struct node *left, *right;
} node;

static node *grow(int depth) {
	node *n = malloc(sizeof *n);
	if (!n)
		abort();
	n->left = depth ? grow(depth - 1) : NULL;
	n->right = depth ? grow(depth - 1) : NULL;
	return n;
}

static long count(const node *n) { return n->left ? 1 + count(n->left) + count(n->right) : 1; }

static void fell(node *n) {
	if (n->left) {
		fell(n->left);
		fell(n->right);
	}
	free(n);
}

int main(int argc, char **argv) {
	int most = (int)size_arg(argc, argv, 5);
	node *lasting = grow(most);
	for (int depth = 2; depth <= most; depth += 2) {
		long trees = 1L << (most - depth + 2), nodes = 0;
		for (long i = 0; i < trees; i++) {
			node *n = grow(depth);
			nodes += count(n);
			fell(n);
		}
		printf("%ld trees of depth %d: %ld nodes\n", trees, depth, nodes);
	}
	printf("lasting: %ld nodes\n", count(lasting));
	return 0;
}
