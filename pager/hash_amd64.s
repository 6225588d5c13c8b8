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

// The same for sixteen lanes in the registers of AVX-512, of which there are
// enough for state and message. Scratch memory, from DI on, 64-byte aligned:
//	  0  the eight words of the chaining values
//	512  the counters

// H is the quarter-round, with two registers that hold message words.
#define H(a, b, c, d, x, y) \
	VPADDD x, a, a;      \
	VPADDD b, a, a;      \
	VPXORD a, d, d;      \
	VPRORD $16, d, d;    \
	VPADDD d, c, c;      \
	VPXORD c, b, b;      \
	VPRORD $12, b, b;    \
	VPADDD y, a, a;      \
	VPADDD b, a, a;      \
	VPXORD a, d, d;      \
	VPRORD $8, d, d;     \
	VPADDD d, c, c;      \
	VPXORD c, b, b;      \
	VPRORD $7, b, b

#define ROUND16(m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15) \
	H(Z0, Z4, Z8, Z12, m0, m1);       \
	H(Z1, Z5, Z9, Z13, m2, m3);       \
	H(Z2, Z6, Z10, Z14, m4, m5);      \
	H(Z3, Z7, Z11, Z15, m6, m7);      \
	H(Z0, Z5, Z10, Z15, m8, m9);      \
	H(Z1, Z6, Z11, Z12, m10, m11);    \
	H(Z2, Z7, Z8, Z13, m12, m13);     \
	H(Z3, Z4, Z9, Z14, m14, m15)

// ROW brings the block of a lane to a register.
#define ROW(lane, z) \
	MOVQ      (lane*8)(R8), BX; \
	VMOVDQU32 (BX)(AX*1), z

// PAIRS and QUADS transpose four rows of words within quarters of a register.
#define PAIRS(r0, r1, r2, r3, t0, t1, t2, t3) \
	VPUNPCKLDQ r1, r0, t0; \
	VPUNPCKHDQ r1, r0, t1; \
	VPUNPCKLDQ r3, r2, t2; \
	VPUNPCKHDQ r3, r2, t3

#define QUADS(t0, t1, t2, t3, r0, r1, r2, r3) \
	VPUNPCKLQDQ t2, t0, r0; \
	VPUNPCKHQDQ t2, t0, r1; \
	VPUNPCKLQDQ t3, t1, r2; \
	VPUNPCKHQDQ t3, t1, r3

// QUARTERS transposes the quarters of four registers.
#define QUARTERS(a, b, c, d) \
	VSHUFI32X4 $0x88, b, a, Z0;  \
	VSHUFI32X4 $0xdd, b, a, Z1;  \
	VSHUFI32X4 $0x88, d, c, Z2;  \
	VSHUFI32X4 $0xdd, d, c, Z3;  \
	VSHUFI32X4 $0x88, Z2, Z0, a; \
	VSHUFI32X4 $0x88, Z3, Z1, b; \
	VSHUFI32X4 $0xdd, Z2, Z0, c; \
	VSHUFI32X4 $0xdd, Z3, Z1, d

// func chain16(in *[16]*byte, blocks int, counters *[16]uint32, flags *uint32, out *[16]Hash)
TEXT ·chain16(SB), 0, $640-40
	MOVQ in+0(FP), R8
	MOVQ blocks+8(FP), CX
	MOVQ counters+16(FP), BX
	MOVQ flags+24(FP), DX
	MOVQ out+32(FP), SI
	LEAQ 63(SP), DI
	ANDQ $~63, DI

	VMOVDQU32    (BX), Z0
	VMOVDQA32    Z0, 512(DI)
	VPBROADCASTD iv<>+0x00(SB), Z0
	VPBROADCASTD iv<>+0x04(SB), Z1
	VPBROADCASTD iv<>+0x08(SB), Z2
	VPBROADCASTD iv<>+0x0c(SB), Z3
	VPBROADCASTD iv<>+0x10(SB), Z4
	VPBROADCASTD iv<>+0x14(SB), Z5
	VPBROADCASTD iv<>+0x18(SB), Z6
	VPBROADCASTD iv<>+0x1c(SB), Z7
	XORQ         AX, AX

block:
	VMOVDQA32 Z0, 0(DI)
	VMOVDQA32 Z1, 64(DI)
	VMOVDQA32 Z2, 128(DI)
	VMOVDQA32 Z3, 192(DI)
	VMOVDQA32 Z4, 256(DI)
	VMOVDQA32 Z5, 320(DI)
	VMOVDQA32 Z6, 384(DI)
	VMOVDQA32 Z7, 448(DI)

	ROW(0, Z16)
	ROW(1, Z17)
	ROW(2, Z18)
	ROW(3, Z19)
	ROW(4, Z20)
	ROW(5, Z21)
	ROW(6, Z22)
	ROW(7, Z23)
	ROW(8, Z24)
	ROW(9, Z25)
	ROW(10, Z26)
	ROW(11, Z27)
	ROW(12, Z28)
	ROW(13, Z29)
	ROW(14, Z30)
	ROW(15, Z31)
	PAIRS(Z16, Z17, Z18, Z19, Z0, Z1, Z2, Z3)
	PAIRS(Z20, Z21, Z22, Z23, Z4, Z5, Z6, Z7)
	PAIRS(Z24, Z25, Z26, Z27, Z8, Z9, Z10, Z11)
	PAIRS(Z28, Z29, Z30, Z31, Z12, Z13, Z14, Z15)
	QUADS(Z0, Z1, Z2, Z3, Z16, Z17, Z18, Z19)
	QUADS(Z4, Z5, Z6, Z7, Z20, Z21, Z22, Z23)
	QUADS(Z8, Z9, Z10, Z11, Z24, Z25, Z26, Z27)
	QUADS(Z12, Z13, Z14, Z15, Z28, Z29, Z30, Z31)
	QUARTERS(Z16, Z20, Z24, Z28)
	QUARTERS(Z17, Z21, Z25, Z29)
	QUARTERS(Z18, Z22, Z26, Z30)
	QUARTERS(Z19, Z23, Z27, Z31)

	VMOVDQA32    0(DI), Z0
	VMOVDQA32    64(DI), Z1
	VMOVDQA32    128(DI), Z2
	VMOVDQA32    192(DI), Z3
	VMOVDQA32    256(DI), Z4
	VMOVDQA32    320(DI), Z5
	VMOVDQA32    384(DI), Z6
	VMOVDQA32    448(DI), Z7
	VPBROADCASTD iv<>+0x00(SB), Z8
	VPBROADCASTD iv<>+0x04(SB), Z9
	VPBROADCASTD iv<>+0x08(SB), Z10
	VPBROADCASTD iv<>+0x0c(SB), Z11
	VMOVDQA32    512(DI), Z12
	VPXORD       Z13, Z13, Z13
	VPBROADCASTD iv<>+0x20(SB), Z14
	VPBROADCASTD (DX), Z15

	ROUND16(Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31)
	ROUND16(Z18, Z22, Z19, Z26, Z23, Z16, Z20, Z29, Z17, Z27, Z28, Z21, Z25, Z30, Z31, Z24)
	ROUND16(Z19, Z20, Z26, Z28, Z29, Z18, Z23, Z30, Z22, Z21, Z25, Z16, Z27, Z31, Z24, Z17)
	ROUND16(Z26, Z23, Z28, Z25, Z30, Z19, Z29, Z31, Z20, Z16, Z27, Z18, Z21, Z24, Z17, Z22)
	ROUND16(Z28, Z29, Z25, Z27, Z31, Z26, Z30, Z24, Z23, Z18, Z21, Z19, Z16, Z17, Z22, Z20)
	ROUND16(Z25, Z30, Z27, Z21, Z24, Z28, Z31, Z17, Z29, Z19, Z16, Z26, Z18, Z22, Z20, Z23)
	ROUND16(Z27, Z31, Z21, Z16, Z17, Z25, Z24, Z22, Z30, Z26, Z18, Z28, Z19, Z20, Z23, Z29)

	VPXORD Z8, Z0, Z0
	VPXORD Z9, Z1, Z1
	VPXORD Z10, Z2, Z2
	VPXORD Z11, Z3, Z3
	VPXORD Z12, Z4, Z4
	VPXORD Z13, Z5, Z5
	VPXORD Z14, Z6, Z6
	VPXORD Z15, Z7, Z7

	ADDQ $4, DX
	ADDQ $64, AX
	DECQ CX
	JNZ  block

	// The lower and the upper eight lanes, one after the other.
	VMOVDQA32 Z0, 0(DI)
	VMOVDQA32 Z1, 64(DI)
	VMOVDQA32 Z2, 128(DI)
	VMOVDQA32 Z3, 192(DI)
	VMOVDQA32 Z4, 256(DI)
	VMOVDQA32 Z5, 320(DI)
	VMOVDQA32 Z6, 384(DI)
	VMOVDQA32 Z7, 448(DI)
	MOVQ      $2, CX

half:
	VMOVDQA 0(DI), Y0
	VMOVDQA 64(DI), Y1
	VMOVDQA 128(DI), Y2
	VMOVDQA 192(DI), Y3
	VMOVDQA 256(DI), Y4
	VMOVDQA 320(DI), Y5
	VMOVDQA 384(DI), Y6
	VMOVDQA 448(DI), Y7
	TRANSPOSE
	VMOVDQU Y8, 0(SI)
	VMOVDQU Y9, 32(SI)
	VMOVDQU Y10, 64(SI)
	VMOVDQU Y11, 96(SI)
	VMOVDQU Y0, 128(SI)
	VMOVDQU Y1, 160(SI)
	VMOVDQU Y2, 192(SI)
	VMOVDQU Y3, 224(SI)
	ADDQ    $32, DI
	ADDQ    $256, SI
	DECQ    CX
	JNZ     half
	VZEROUPPER
	RET
