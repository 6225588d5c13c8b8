#include "textflag.h"

// Eight BLAKE3 chaining values at once, one in each 32-bit lane of the AVX2
// registers. See the BLAKE3 paper, section 5.3, for the layout: word i of the
// state of all eight lanes is one register, so that a round is eight times the
// quarter-round below, with no shuffling between lanes.
//
// There are sixteen words of state, sixteen registers, and a rotation needs
// one more. So word 8 lives in memory, and Y8 is free.
//
// Scratch memory, from DI on, 32-byte aligned:
//	  0  the sixteen words of the message
//	512  the eight words of the chaining values
//	768  word 8 of the state
//	800  the counters

DATA rotate16<>+0x00(SB)/8, $0x0504070601000302
DATA rotate16<>+0x08(SB)/8, $0x0d0c0f0e09080b0a
DATA rotate16<>+0x10(SB)/8, $0x0504070601000302
DATA rotate16<>+0x18(SB)/8, $0x0d0c0f0e09080b0a
GLOBL rotate16<>(SB), RODATA|NOPTR, $32

DATA rotate8<>+0x00(SB)/8, $0x0407060500030201
DATA rotate8<>+0x08(SB)/8, $0x0c0f0e0d080b0a09
DATA rotate8<>+0x10(SB)/8, $0x0407060500030201
DATA rotate8<>+0x18(SB)/8, $0x0c0f0e0d080b0a09
GLOBL rotate8<>(SB), RODATA|NOPTR, $32

DATA iv<>+0x00(SB)/4, $0x6a09e667
DATA iv<>+0x04(SB)/4, $0xbb67ae85
DATA iv<>+0x08(SB)/4, $0x3c6ef372
DATA iv<>+0x0c(SB)/4, $0xa54ff53a
DATA iv<>+0x10(SB)/4, $0x510e527f
DATA iv<>+0x14(SB)/4, $0x9b05688c
DATA iv<>+0x18(SB)/4, $0x1f83d9ab
DATA iv<>+0x1c(SB)/4, $0x5be0cd19
DATA iv<>+0x20(SB)/4, $64
GLOBL iv<>(SB), RODATA|NOPTR, $36

// ROTATE rotates v right by n, with m = 32 - n.
#define ROTATE(v, n, m) \
	VPSRLD $n, v, Y8; \
	VPSLLD $m, v, v;  \
	VPOR   Y8, v, v

// G is the quarter-round, with x and y the numbers of two message words.
#define G(a, b, c, d, x, y) \
	VPADDD  (x*32)(DI), a, a;        \
	VPADDD  b, a, a;                 \
	VPXOR   a, d, d;                 \
	VPSHUFB rotate16<>(SB), d, d;    \
	VPADDD  d, c, c;                 \
	VPXOR   c, b, b;                 \
	ROTATE(b, 12, 20);               \
	VPADDD  (y*32)(DI), a, a;        \
	VPADDD  b, a, a;                 \
	VPXOR   a, d, d;                 \
	VPSHUFB rotate8<>(SB), d, d;     \
	VPADDD  d, c, c;                 \
	VPXOR   c, b, b;                 \
	ROTATE(b, 7, 25)

// G8 is G with word 8 for c.
#define G8(a, b, d, x, y) \
	VPADDD  (x*32)(DI), a, a;        \
	VPADDD  b, a, a;                 \
	VPXOR   a, d, d;                 \
	VPSHUFB rotate16<>(SB), d, d;    \
	VPADDD  768(DI), d, Y8;          \
	VMOVDQA Y8, 768(DI);             \
	VPXOR   Y8, b, b;                \
	ROTATE(b, 12, 20);               \
	VPADDD  (y*32)(DI), a, a;        \
	VPADDD  b, a, a;                 \
	VPXOR   a, d, d;                 \
	VPSHUFB rotate8<>(SB), d, d;     \
	VPADDD  768(DI), d, Y8;          \
	VMOVDQA Y8, 768(DI);             \
	VPXOR   Y8, b, b;                \
	ROTATE(b, 7, 25)

// ROUND mixes columns, then diagonals.
#define ROUND(m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15) \
	G8(Y0, Y4, Y12, m0, m1);          \
	G(Y1, Y5, Y9, Y13, m2, m3);       \
	G(Y2, Y6, Y10, Y14, m4, m5);      \
	G(Y3, Y7, Y11, Y15, m6, m7);      \
	G(Y0, Y5, Y10, Y15, m8, m9);      \
	G(Y1, Y6, Y11, Y12, m10, m11);    \
	G8(Y2, Y7, Y13, m12, m13);        \
	G(Y3, Y4, Y9, Y14, m14, m15)

// TRANSPOSE takes eight rows of eight words in Y0 to Y7, and leaves columns 0
// to 3 in Y8 to Y11 and columns 4 to 7 in Y0 to Y3.
#define TRANSPOSE \
	VPUNPCKLDQ  Y1, Y0, Y8;          \
	VPUNPCKHDQ  Y1, Y0, Y9;          \
	VPUNPCKLDQ  Y3, Y2, Y10;         \
	VPUNPCKHDQ  Y3, Y2, Y11;         \
	VPUNPCKLDQ  Y5, Y4, Y12;         \
	VPUNPCKHDQ  Y5, Y4, Y13;         \
	VPUNPCKLDQ  Y7, Y6, Y14;         \
	VPUNPCKHDQ  Y7, Y6, Y15;         \
	VPUNPCKLQDQ Y10, Y8, Y0;         \
	VPUNPCKHQDQ Y10, Y8, Y1;         \
	VPUNPCKLQDQ Y11, Y9, Y2;         \
	VPUNPCKHQDQ Y11, Y9, Y3;         \
	VPUNPCKLQDQ Y14, Y12, Y4;        \
	VPUNPCKHQDQ Y14, Y12, Y5;        \
	VPUNPCKLQDQ Y15, Y13, Y6;        \
	VPUNPCKHQDQ Y15, Y13, Y7;        \
	VPERM2I128  $0x20, Y4, Y0, Y8;   \
	VPERM2I128  $0x20, Y5, Y1, Y9;   \
	VPERM2I128  $0x20, Y6, Y2, Y10;  \
	VPERM2I128  $0x20, Y7, Y3, Y11;  \
	VPERM2I128  $0x31, Y4, Y0, Y0;   \
	VPERM2I128  $0x31, Y5, Y1, Y1;   \
	VPERM2I128  $0x31, Y6, Y2, Y2;   \
	VPERM2I128  $0x31, Y7, Y3, Y3

// MESSAGE brings half a block, from offset on, of each lane to at, transposed.
#define MESSAGE(offset, at) \
	VMOVDQU offset(R8)(AX*1), Y0;    \
	VMOVDQU offset(R9)(AX*1), Y1;    \
	VMOVDQU offset(R10)(AX*1), Y2;   \
	VMOVDQU offset(R11)(AX*1), Y3;   \
	VMOVDQU offset(R12)(AX*1), Y4;   \
	VMOVDQU offset(R13)(AX*1), Y5;   \
	VMOVDQU offset(R14)(AX*1), Y6;   \
	VMOVDQU offset(R15)(AX*1), Y7;   \
	TRANSPOSE;                       \
	VMOVDQA Y8, (at+0)(DI);          \
	VMOVDQA Y9, (at+32)(DI);         \
	VMOVDQA Y10, (at+64)(DI);        \
	VMOVDQA Y11, (at+96)(DI);        \
	VMOVDQA Y0, (at+128)(DI);        \
	VMOVDQA Y1, (at+160)(DI);        \
	VMOVDQA Y2, (at+192)(DI);        \
	VMOVDQA Y3, (at+224)(DI)

// func chain8(in *[8]*byte, blocks int, counters *[8]uint32, flags *uint32, out *[8]Hash)
TEXT ·chain8(SB), 0, $864-40
	MOVQ in+0(FP), AX
	MOVQ 0(AX), R8
	MOVQ 8(AX), R9
	MOVQ 16(AX), R10
	MOVQ 24(AX), R11
	MOVQ 32(AX), R12
	MOVQ 40(AX), R13
	MOVQ 48(AX), R14
	MOVQ 56(AX), R15
	MOVQ blocks+8(FP), CX
	MOVQ counters+16(FP), BX
	MOVQ flags+24(FP), DX
	MOVQ out+32(FP), SI
	LEAQ 31(SP), DI
	ANDQ $~31, DI

	VMOVDQU      (BX), Y0
	VMOVDQA      Y0, 800(DI)
	VPBROADCASTD iv<>+0x00(SB), Y0
	VPBROADCASTD iv<>+0x04(SB), Y1
	VPBROADCASTD iv<>+0x08(SB), Y2
	VPBROADCASTD iv<>+0x0c(SB), Y3
	VPBROADCASTD iv<>+0x10(SB), Y4
	VPBROADCASTD iv<>+0x14(SB), Y5
	VPBROADCASTD iv<>+0x18(SB), Y6
	VPBROADCASTD iv<>+0x1c(SB), Y7
	XORQ         AX, AX

block:
	VMOVDQA Y0, 512(DI)
	VMOVDQA Y1, 544(DI)
	VMOVDQA Y2, 576(DI)
	VMOVDQA Y3, 608(DI)
	VMOVDQA Y4, 640(DI)
	VMOVDQA Y5, 672(DI)
	VMOVDQA Y6, 704(DI)
	VMOVDQA Y7, 736(DI)
	MESSAGE(0, 0)
	MESSAGE(32, 256)

	VPBROADCASTD iv<>+0x00(SB), Y8
	VMOVDQA      Y8, 768(DI)
	VMOVDQA      512(DI), Y0
	VMOVDQA      544(DI), Y1
	VMOVDQA      576(DI), Y2
	VMOVDQA      608(DI), Y3
	VMOVDQA      640(DI), Y4
	VMOVDQA      672(DI), Y5
	VMOVDQA      704(DI), Y6
	VMOVDQA      736(DI), Y7
	VPBROADCASTD iv<>+0x04(SB), Y9
	VPBROADCASTD iv<>+0x08(SB), Y10
	VPBROADCASTD iv<>+0x0c(SB), Y11
	VMOVDQA      800(DI), Y12          // the low half of the counters
	VPXOR        Y13, Y13, Y13         // and the high half
	VPBROADCASTD iv<>+0x20(SB), Y14    // the length of the block
	VPBROADCASTD (DX), Y15

	ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
	ROUND(2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
	ROUND(3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1)
	ROUND(10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6)
	ROUND(12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4)
	ROUND(9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7)
	ROUND(11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)

	VPXOR 768(DI), Y0, Y0
	VPXOR Y9, Y1, Y1
	VPXOR Y10, Y2, Y2
	VPXOR Y11, Y3, Y3
	VPXOR Y12, Y4, Y4
	VPXOR Y13, Y5, Y5
	VPXOR Y14, Y6, Y6
	VPXOR Y15, Y7, Y7

	ADDQ $4, DX
	ADDQ $64, AX
	DECQ CX
	JNZ  block

	TRANSPOSE
	VMOVDQU Y8, 0(SI)
	VMOVDQU Y9, 32(SI)
	VMOVDQU Y10, 64(SI)
	VMOVDQU Y11, 96(SI)
	VMOVDQU Y0, 128(SI)
	VMOVDQU Y1, 160(SI)
	VMOVDQU Y2, 192(SI)
	VMOVDQU Y3, 224(SI)
	VZEROUPPER
	RET
