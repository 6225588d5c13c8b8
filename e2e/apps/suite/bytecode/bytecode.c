// bytecode: an interpreter, one function with a switch, that runs a loop.
#include "../suite.h"

enum op {
	PUSH, LOAD, STORE, ADD, SUB, MUL, AND, XOR, SHL, SHR, LESS, EQUAL, DUP, SWAP, OVER, DROP,
	JUMP, BRANCH, GETM, PUTM, NEG, NOT, MIN, MAX, INC, DEC, ROT, CALL, RET, MIX, NOP, HALT,
};

static uint32_t memory[256];

static uint32_t run(const int *code, uint32_t n) {
	uint32_t stack[64], local[8] = {n}, *sp = stack, t;
	int calls[16], depth = 0;
	for (const int *pc = code;;) {
		switch (*pc++) {
		case PUSH: *sp++ = (uint32_t)*pc++; break;
		case LOAD: *sp++ = local[*pc++]; break;
		case STORE: local[*pc++] = *--sp; break;
		case ADD: sp--; sp[-1] += sp[0]; break;
		case SUB: sp--; sp[-1] -= sp[0]; break;
		case MUL: sp--; sp[-1] *= sp[0]; break;
		case AND: sp--; sp[-1] &= sp[0]; break;
		case XOR: sp--; sp[-1] ^= sp[0]; break;
		case SHL: sp--; sp[-1] <<= sp[0] & 31; break;
		case SHR: sp--; sp[-1] >>= sp[0] & 31; break;
		case LESS: sp--; sp[-1] = sp[-1] < sp[0]; break;
		case EQUAL: sp--; sp[-1] = sp[-1] == sp[0]; break;
		case DUP: sp[0] = sp[-1]; sp++; break;
		case SWAP: t = sp[-1]; sp[-1] = sp[-2]; sp[-2] = t; break;
		case OVER: sp[0] = sp[-2]; sp++; break;
		case DROP: sp--; break;
		case JUMP: pc = code + *pc; break;
		case BRANCH: pc = *--sp ? code + *pc : pc + 1; break;
		case GETM: sp[-1] = memory[sp[-1] & 255]; break;
		case PUTM: sp -= 2; memory[sp[1] & 255] = sp[0]; break;
		case NEG: sp[-1] = -sp[-1]; break;
		case NOT: sp[-1] = !sp[-1]; break;
		case MIN: sp--; sp[-1] = sp[-1] < sp[0] ? sp[-1] : sp[0]; break;
		case MAX: sp--; sp[-1] = sp[-1] > sp[0] ? sp[-1] : sp[0]; break;
		case INC: local[*pc++]++; break;
		case DEC: local[*pc++]--; break;
		case ROT: t = sp[-3]; sp[-3] = sp[-2]; sp[-2] = sp[-1]; sp[-1] = t; break;
		case CALL: calls[depth++] = (int)(pc + 1 - code); pc = code + *pc; break;
		case RET: pc = code + calls[--depth]; break;
		case MIX: sp[-1] = (sp[-1] ^ sp[-1] >> 15) * 2246822519u; break;
		case NOP: break;
		case HALT: return local[1];
		default: abort();
		}
	}
}

int main(int argc, char **argv) {
	static const int program[] = {
		/* 0 */ LOAD, 0, NOT, BRANCH, 26,
		/* 5 */ LOAD, 1, LOAD, 0, CALL, 27, STORE, 1,
		/* 13 */ LOAD, 1, LOAD, 0, PUTM,
		/* 18 */ LOAD, 1, GETM, DROP, DEC, 0, JUMP, 0,
		/* 26 */ HALT,
		/* 27 */ ADD, MIX, DUP, PUSH, 7, AND, PUSH, 3, LESS, BRANCH, 39, NEG,
		/* 39 */ RET,
	};
	long n = size_arg(argc, argv, 100);
	uint32_t sum = run(program, (uint32_t)n);
	for (int i = 0; i < 256; i++)
		sum = sum * 31 + memory[i];
	printf("%08x\n", sum);
	return 0;
}
