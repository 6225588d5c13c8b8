package runner

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"meshnode/node/suspend"
	"meshnode/node/wasi"
)

// Result codes of the host interface.
const (
	resOK         = 0
	resTooLarge   = 1
	resNotInCall  = 2
	resTooMany    = 3
	resBadPointer = 4
	resBadArg     = 5
	resUndeclared = 6
	resNoReading  = 7
)

// A host is the host interface meshnode_v1 of one worker, and what the event
// that is running has asked for so far. It copies between guest memory and Go
// buffers in Go code only: a system call on guest memory fails where a page has
// yet to arrive.
type host struct {
	clock *wasi.Clock
	log   func(Log)
	// read asks the node for a reading, and waits for it.
	read func(name string) reading
	// waited is how long the event that is running has waited for readings.
	waited time.Duration

	// in is the event that is running.
	in      Event
	running bool
	out     Effects
	sent    int // bytes of out.Sends
	// ops are the timer changes of the event that is running.
	ops map[uint64]TimerOp
	// armed are the timers that are armed, those of ops included; true if
	// periodic. Only their number matters here, for MaxTimers.
	armed map[uint64]bool
}

func newHost(clock *wasi.Clock, log func(Log), read func(name string) reading) *host {
	return &host{clock: clock, log: log, read: read, ops: map[uint64]TimerOp{}, armed: map[uint64]bool{}}
}

// begin takes an event, whose payload it keeps until end.
func (h *host) begin(e Event) {
	h.in, h.out, h.sent, h.running, h.waited = e, Effects{}, 0, true, 0
	clear(h.ops)
	if e.Kind == Timer && !h.armed[e.ID] {
		delete(h.armed, e.ID) // it has fired its one time
	}
}

// end returns what the event asked for. The result is valid until the next
// begin.
func (h *host) end() *Effects {
	h.running = false
	h.in = Event{}
	if len(h.ops) > 0 {
		h.out.Timers = make([]TimerOp, 0, len(h.ops))
		for _, op := range h.ops {
			h.out.Timers = append(h.out.Timers, op)
		}
		slices.SortFunc(h.out.Timers, func(a, b TimerOp) int { return cmp.Compare(a.ID, b.ID) })
	}
	return &h.out
}

func (h *host) timers() []ArmedTimer {
	var list []ArmedTimer
	for id, periodic := range h.armed {
		list = append(list, ArmedTimer{ID: id, Periodic: periodic})
	}
	slices.SortFunc(list, func(a, b ArmedTimer) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

func (h *host) setTimers(list []ArmedTimer) error {
	if len(list) > MaxTimers {
		return fmt.Errorf("%d armed timers, at most %d", len(list), MaxTimers)
	}
	clear(h.armed)
	for _, t := range list {
		h.armed[t.ID] = t.Periodic
	}
	if len(h.armed) != len(list) {
		return fmt.Errorf("a timer is armed twice")
	}
	return nil
}

// instantiate adds the interface to a runtime.
func (h *host) instantiate(ctx context.Context, rt wazero.Runtime) error {
	const (
		i32 = api.ValueTypeI32
		i64 = api.ValueTypeI64
	)
	b := rt.NewHostModuleBuilder(suspend.HostModule)
	export := func(name string, f func(mem api.Memory, stack []uint64), results []api.ValueType, params ...api.ValueType) {
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(_ context.Context, mod api.Module, stack []uint64) {
			f(mod.Memory(), stack)
		}), params, results).Export(name)
	}
	one := []api.ValueType{i32}
	export("event_read", h.eventRead, one, i32, i32, i32)
	export("reply", h.reply, one, i32, i32)
	export("send", h.send, one, i32, i32, i32, i32)
	export("timer_set", h.timerSet, one, i64, i64, i64)
	export("timer_cancel", h.timerCancel, one, i64)
	export("log", h.logLine, nil, i32, i32, i32)
	export("clock", func(_ api.Memory, stack []uint64) { stack[0] = uint64(h.clock.Now()) }, []api.ValueType{i64})
	export("random", h.random, one, i32, i32)
	export("interface_read", h.interfaceRead, one, i32, i32, i32, i32)
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("instantiate %s: %w", suspend.HostModule, err)
	}
	return nil
}

// eventRead(ptr, len, offset) copies part of the payload and returns how many
// bytes: fewer than asked at the payload's end, none behind it, and none if the
// buffer is not all in memory.
func (h *host) eventRead(mem api.Memory, stack []uint64) {
	p, n, offset := uint32(stack[0]), uint32(stack[1]), uint32(stack[2])
	stack[0] = 0
	if uint64(offset) >= uint64(len(h.in.Payload)) {
		return
	}
	part := h.in.Payload[offset:]
	n = min(n, uint32(len(part)))
	if view, ok := mem.Read(p, n); ok {
		stack[0] = uint64(copy(view, part))
	}
}

// reply(ptr, len) sets the reply of the call that is running.
func (h *host) reply(mem api.Memory, stack []uint64) {
	p, n := uint32(stack[0]), uint32(stack[1])
	stack[0] = func() uint64 {
		if !h.running || h.in.Kind != Call {
			return resNotInCall
		}
		if n > MaxPayload {
			return resTooLarge
		}
		view, ok := mem.Read(p, n)
		if !ok {
			return resBadPointer
		}
		h.out.Reply = append(h.out.Reply[:0], view...)
		h.out.Replied = true
		return resOK
	}()
}

// send(name_ptr, name_len, ptr, len) adds a message to another worker.
func (h *host) send(mem api.Memory, stack []uint64) {
	np, nn, p, n := uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])
	stack[0] = func() uint64 {
		if !h.running || nn == 0 || nn > MaxName {
			return resBadArg
		}
		if n > MaxPayload {
			return resTooLarge
		}
		if h.in.NoSends || len(h.out.Sends) == MaxSends || h.sent+int(n) > MaxSendBytes {
			return resTooMany
		}
		name, ok := mem.Read(np, nn)
		if !ok {
			return resBadPointer
		}
		view, ok := mem.Read(p, n)
		if !ok {
			return resBadPointer
		}
		to := string(name)
		if !validName(to) {
			return resBadArg
		}
		h.out.Sends = append(h.out.Sends, Message{To: to, Payload: append([]byte(nil), view...)})
		h.sent += int(n)
		return resOK
	}()
}

// validName says whether s can name a worker: [a-z0-9][a-z0-9-]{0,62}.
func validName(s string) bool {
	if s == "" || len(s) > MaxName || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// timerSet(id, after_ns, every_ns) arms a timer, or arms it anew.
func (h *host) timerSet(_ api.Memory, stack []uint64) {
	id, after, every := stack[0], int64(stack[1]), int64(stack[2])
	stack[0] = func() uint64 {
		if !h.running || after < 0 || every < 0 {
			return resBadArg
		}
		if _, again := h.armed[id]; !again && len(h.armed) == MaxTimers {
			return resTooMany
		}
		if !h.room(id) {
			return resTooMany
		}
		h.armed[id] = every > 0
		h.ops[id] = TimerOp{ID: id, After: time.Duration(after), Every: time.Duration(every)}
		return resOK
	}()
}

// timerCancel(id) disarms a timer; one that is not armed is left alone.
func (h *host) timerCancel(_ api.Memory, stack []uint64) {
	id := stack[0]
	stack[0] = func() uint64 {
		if !h.running {
			return resBadArg
		}
		if _, armed := h.armed[id]; !armed {
			return resOK
		}
		if !h.room(id) {
			return resTooMany
		}
		delete(h.armed, id)
		h.ops[id] = TimerOp{ID: id, Cancel: true}
		return resOK
	}()
}

// room says whether the event may change one more timer.
func (h *host) room(id uint64) bool {
	_, changed := h.ops[id]
	return changed || len(h.ops) < MaxTimerOps
}

// logLine(level, ptr, len) writes to the worker's log, one line of it for each
// line of the text. A text beyond memory is dropped: there is nobody to tell.
func (h *host) logLine(mem api.Memory, stack []uint64) {
	level, p, n := uint32(stack[0]), uint32(stack[1]), uint32(stack[2])
	cut := n > MaxLogLine
	view, ok := mem.Read(p, min(n, MaxLogLine))
	if !ok {
		return
	}
	levels := [...]slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}
	text := strings.TrimRight(string(view), "\r\n")
	if cut {
		text = clip(text, MaxLogLine-len(cutMark)) + cutMark
	}
	for line := range strings.SplitSeq(text, "\n") {
		h.log(Log{Level: levels[min(level, 3)], Source: "guest", Text: printable(line)})
	}
}

// cutMark ends a line that was longer than MaxLogLine.
const cutMark = " [...]"

// printable makes a worker's text valid UTF-8 without line ends.
func printable(s string) string {
	s = strings.TrimSuffix(s, "\r")
	if !utf8.ValidString(s) {
		s = clip(s, MaxLogLine)
	}
	return s
}

// random(ptr, len) fills memory with random bytes.
func (h *host) random(mem api.Memory, stack []uint64) {
	if wasi.Random(mem, uint32(stack[0]), uint32(stack[1])) != 0 {
		stack[0] = resBadPointer
		return
	}
	stack[0] = resOK
}

// interfaceRead(name_ptr, name_len, ptr, len) copies a reading of an interface
// of the host to memory and returns its size, or the negative of a result code.
// A reading is taken whole or not at all.
func (h *host) interfaceRead(mem api.Memory, stack []uint64) {
	np, nn, p, n := uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])
	size, code := func() (size int, code uint32) {
		if nn == 0 || nn > MaxName {
			return 0, resBadArg
		}
		if !h.running {
			return 0, resNoReading // it is being initialised: nobody could answer
		}
		name, ok := mem.Read(np, nn)
		if !ok {
			return 0, resBadPointer
		}
		view, ok := mem.Read(p, n)
		if !ok {
			return 0, resBadPointer
		}
		if !utf8.Valid(name) {
			return 0, resBadArg
		}
		start := time.Now()
		r := h.read(string(name))
		h.waited += time.Since(start)
		if r.Code != resOK {
			return 0, r.Code
		}
		if len(r.Data) > len(view) {
			return 0, resTooLarge
		}
		return copy(view, r.Data), resOK
	}()
	if code != resOK {
		size = -int(code)
	}
	stack[0] = api.EncodeI32(int32(size))
}
