// Package guest is what a worker written in Go needs to live in meshnode: it
// receives events, and replies, sends, sets timers and logs through the host
// interface "meshnode_v1".
//
// # A complete worker
//
//	package main
//
//	import (
//		"strconv"
//		"time"
//
//		"meshnode/node/guest"
//	)
//
//	var count int
//
//	func init() { guest.Handle(handle) }
//
//	func main() {} // never called; the linker wants one
//
//	func handle(ev guest.Event) {
//		switch ev.Kind {
//		case guest.KindCall: // somebody waits for a reply
//			n, err := strconv.Atoi(string(ev.Payload))
//			if err != nil {
//				ev.Reply([]byte("want a number"))
//				ev.Fail(1)
//				return
//			}
//			count += n
//			guest.SetTimer(1, time.Second, 0)
//			ev.Reply(strconv.AppendInt(nil, int64(count), 10))
//		case guest.KindTimer:
//			guest.Log(guest.LevelInfo, "count is now %d", count)
//		}
//	}
//
// Build it as a WASI reactor and run it:
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o counter.wasm ./counter
//	meshnode worker run counter.wasm
//	meshnode worker call counter 42
//
// # How a worker lives
//
// The node calls _initialize once, which runs package variables and init
// functions: register the handler there. Afterwards it calls the exported
// meshnode_event once per event, one at a time, never nested. Between two
// events the stack is empty, and that is when a worker can move to another
// node: all of its variables, its heap and its timers move along, and nothing
// has to be saved or restored by the program.
//
// An event is a transaction. Its reply, sends and timer changes leave the node
// together when the handler returns. A handler that panics stops the worker for
// good, with the panic as the reason, and none of that event's effects happen.
//
// Goroutines run only while an event is being handled; one that is still
// blocked or runnable when the handler returns goes on at the next event. A
// handler that waits for something no event can bring is a deadlock, which the
// Go runtime turns into a crash. Use a timer, not time.Sleep, to do something
// later: a sleeping handler keeps the worker from taking events and from moving.
//
// # Memory
//
// Every page a worker writes has to be sent again when it moves, so garbage is
// not free: it dirties pages, and so does the collection that follows. This
// package allocates nothing per event once its payload buffer has grown to the
// largest payload seen. Handlers that reuse their own buffers stay as quiet.
//
// # Other platforms
//
// The host interface exists inside a worker only: elsewhere this package has its
// constants and errors, so that tools can build and check it, and nothing that
// pretends to work ("GOOS=wasip1 go doc" shows the rest). Put the logic of a
// worker in a package of its own to test it natively.
package guest
