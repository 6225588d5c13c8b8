/*
 * meshnode.h: what a worker written in C needs to live in meshnode: it receives
 * events, and replies, sends, sets timers and logs through the host interface
 * "meshnode_v1".
 *
 * A complete worker:
 *
 *     #include "meshnode.h"
 *     #include <stdio.h>
 *
 *     static long count;
 *
 *     int32_t meshnode_event(int32_t kind, int64_t id, int32_t len) {
 *         char text[32];
 *         (void)id;
 *         (void)len;
 *         if (kind != MESHNODE_CALL)
 *             return 0;
 *         count++;
 *         meshnode_reply(text, snprintf(text, sizeof text, "%ld", count));
 *         return 0;
 *     }
 *
 * Build it as a WASI reactor and run it:
 *
 *     clang --target=wasm32-wasi -O2 -mexec-model=reactor -I node/guest \
 *           -o counter.wasm counter.c
 *     meshnode worker run counter.wasm
 *     meshnode worker call counter
 *
 * The node calls _initialize once (constructors), and then meshnode_event once
 * per event, one at a time, never nested. Between two events the stack is
 * empty, and that is when a worker can move to another node: its memory, its
 * globals and its timers move along, and nothing has to be saved or restored by
 * the program. An event is a transaction: its reply, sends and timer changes
 * leave the node together when meshnode_event returns. A trap stops the worker
 * for good, and none of that event's effects happen.
 *
 * Strings need no terminating zero. The host copies what it is given before a
 * function returns, and keeps no pointer.
 */
#ifndef MESHNODE_H
#define MESHNODE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef __wasm__
#error "meshnode.h is for WebAssembly: compile with --target=wasm32-wasi"
#endif

/* Limits, enforced by the node. */
#define MESHNODE_MAX_PAYLOAD (1u << 20) /* bytes of a payload or a reply */
#define MESHNODE_MAX_SENDS 64           /* messages of one event */
#define MESHNODE_MAX_TIMERS 1024        /* armed timers of one worker */
#define MESHNODE_MAX_READING (64u << 10) /* bytes of a reading of a host interface */

/* Why meshnode_event was called. */
enum {
	MESHNODE_CALL = 0,  /* a message whose sender waits for the reply */
	MESHNODE_SEND = 1,  /* a one-way message */
	MESHNODE_TIMER = 2, /* a timer expired; id is the timer's, no payload */
};

/* What the functions below return. */
enum {
	MESHNODE_OK = 0,
	MESHNODE_TOO_LARGE = 1,    /* payload above MESHNODE_MAX_PAYLOAD; reading above the buffer */
	MESHNODE_NOT_IN_CALL = 2,  /* reply to something that is not a call */
	MESHNODE_TOO_MANY = 3,     /* queue of messages or set of timers is full */
	MESHNODE_BAD_POINTER = 4,  /* outside the worker's memory */
	MESHNODE_BAD_ARGUMENT = 5, /* a name, a time or an id the host refuses */
	MESHNODE_UNDECLARED = 6,   /* an interface that the app's manifest does not name */
	MESHNODE_NO_READING = 7,   /* an interface that cannot be read now; the worker's log says why */
};

/* Levels of the log. */
enum {
	MESHNODE_DEBUG = 0,
	MESHNODE_INFO = 1,
	MESHNODE_WARN = 2,
	MESHNODE_ERROR = 3,
};

/*
 * The program defines this function. len is the size of the payload in bytes,
 * to be fetched with meshnode_event_read. The result is 0, or an application
 * error code that the caller sees beside the reply.
 */
__attribute__((export_name("meshnode_event")))
int32_t meshnode_event(int32_t kind, int64_t id, int32_t len);

#define MESHNODE_IMPORT(name) \
	__attribute__((import_module("meshnode_v1"), import_name(name)))

/* The imports as they are; the inline functions below are nicer to call. */
MESHNODE_IMPORT("event_read")
int32_t meshnode_v1_event_read(void *p, int32_t len, int32_t offset);
MESHNODE_IMPORT("reply")
int32_t meshnode_v1_reply(const void *p, int32_t len);
MESHNODE_IMPORT("send")
int32_t meshnode_v1_send(const char *name, int32_t name_len, const void *p, int32_t len);
MESHNODE_IMPORT("timer_set")
int32_t meshnode_v1_timer_set(int64_t id, int64_t after_ns, int64_t every_ns);
MESHNODE_IMPORT("timer_cancel")
int32_t meshnode_v1_timer_cancel(int64_t id);
MESHNODE_IMPORT("log")
void meshnode_v1_log(int32_t level, const void *p, int32_t len);
MESHNODE_IMPORT("clock")
int64_t meshnode_v1_clock(void);
MESHNODE_IMPORT("random")
int32_t meshnode_v1_random(void *p, int32_t len);
MESHNODE_IMPORT("interface_read")
int32_t meshnode_v1_interface_read(const char *name, int32_t name_len, void *p, int32_t len);

/*
 * Copies the bytes [offset, offset+len) of the current event's payload to p and
 * returns how many there were, fewer at the payload's end.
 */
static inline size_t meshnode_event_read(void *p, size_t len, size_t offset) {
	return (size_t)meshnode_v1_event_read(p, (int32_t)len, (int32_t)offset);
}

/* Sets the answer to the current call; a later one replaces it. */
static inline int meshnode_reply(const void *p, size_t len) {
	return meshnode_v1_reply(p, (int32_t)len);
}

/*
 * Queues a one-way message to the worker of that name. Whether it exists is
 * found out later, and not by the sender.
 */
static inline int meshnode_send(const char *name, size_t name_len, const void *p, size_t len) {
	return meshnode_v1_send(name, (int32_t)name_len, p, (int32_t)len);
}

/*
 * Arms timer id, or arms it anew: it expires after after_ns nanoseconds and
 * then, unless every_ns is 0, at that interval. Timers survive moves with the
 * time they had left.
 */
static inline int meshnode_timer_set(uint64_t id, int64_t after_ns, int64_t every_ns) {
	return meshnode_v1_timer_set((int64_t)id, after_ns, every_ns);
}

/* Disarms timer id; not an error if it is not armed. */
static inline int meshnode_timer_cancel(uint64_t id) {
	return meshnode_v1_timer_cancel((int64_t)id);
}

/* Writes a line to the worker's log. */
static inline void meshnode_log(int level, const char *text, size_t len) {
	meshnode_v1_log(level, text, (int32_t)len);
}

/*
 * The worker's clock in nanoseconds: monotonic from an unspecified start, and
 * never backwards, not even when the worker moves to another machine.
 */
static inline int64_t meshnode_clock(void) {
	return meshnode_v1_clock();
}

/* Fills p with random bytes, good enough for keys. */
static inline int meshnode_random(void *p, size_t len) {
	return meshnode_v1_random(p, (int32_t)len);
}

/*
 * Reads an interface of the host that the app's manifest names, such as a
 * location, to p. The result is the size of the reading in bytes, or negative:
 * -MESHNODE_UNDECLARED, -MESHNODE_NO_READING, or -MESHNODE_TOO_LARGE, with
 * nothing written. It takes a round trip to the node that has the interface, a
 * second at most, in which the worker handles nothing else.
 */
static inline int meshnode_interface_read(const char *name, size_t name_len, void *p, size_t len) {
	return meshnode_v1_interface_read(name, (int32_t)name_len, p, (int32_t)len);
}

#ifdef __cplusplus
}
#endif

#endif /* MESHNODE_H */
