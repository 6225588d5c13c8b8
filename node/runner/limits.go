package runner

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// DefaultMemoryLimit is the memory limit of a worker that names none, in bytes.
const DefaultMemoryLimit = 256 << 20

// checkLimit says whether a memory of this size can be made here.
func checkLimit(limit uint64) error {
	if limit < WasmPage || limit > MaxMemory {
		return fmt.Errorf("memory limit of %d bytes: must be from %d to %d", limit, WasmPage, uint64(MaxMemory))
	}
	if limit > math.MaxInt {
		return fmt.Errorf("memory limit of %d bytes: too much for this machine's addresses, at most %d", limit, math.MaxInt)
	}
	return nil
}

// check says whether effects are what an honest runner would send.
func (e *Effects) check() error {
	if len(e.Reply) > MaxPayload {
		return fmt.Errorf("%w: reply of %d bytes", errFrame, len(e.Reply))
	}
	if len(e.Reply) > 0 && !e.Replied {
		return fmt.Errorf("%w: reply without saying so", errFrame)
	}
	if len(e.Sends) > MaxSends {
		return fmt.Errorf("%w: %d messages in one event", errFrame, len(e.Sends))
	}
	total := 0
	for i := range e.Sends {
		s := &e.Sends[i]
		if s.To == "" || len(s.To) > MaxName || len(s.Payload) > MaxPayload {
			return fmt.Errorf("%w: message to a name of %d bytes with %d bytes", errFrame, len(s.To), len(s.Payload))
		}
		total += len(s.Payload)
	}
	if total > MaxSendBytes {
		return fmt.Errorf("%w: %d bytes of messages in one event", errFrame, total)
	}
	if len(e.Timers) > MaxTimerOps {
		return fmt.Errorf("%w: %d timer changes in one event", errFrame, len(e.Timers))
	}
	for i := range e.Timers {
		t := &e.Timers[i]
		if t.After < 0 || t.Every < 0 || i > 0 && t.ID <= e.Timers[i-1].ID {
			return fmt.Errorf("%w: timer change %d", errFrame, i)
		}
	}
	if e.Duration < 0 {
		return fmt.Errorf("%w: negative duration", errFrame)
	}
	return nil
}

// clip cuts s to at most n bytes of valid UTF-8.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
		for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
			s = s[:len(s)-1]
		}
		if r, size := utf8.DecodeLastRuneInString(s); r == utf8.RuneError && size == 1 {
			s = s[:len(s)-1]
		}
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
