//go:build wasip1

// Counter is the smallest worker: a number that survives moves. Calls carry a
// command as text and are answered as text:
//
//	add N        adds N and answers the new count
//	get          answers the count
//	reset        sets it to 0
//	every D      from now on adds 1 at this interval, such as 100ms
//	stop         ends that
//
// A command that makes no sense ends with code 1 and the reason as the reply.
// The same program in C is in ../counter-c.
package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"meshnode/node/guest"
)

// ticker is the id of the only timer.
const ticker = 1

var (
	count int64
	reply []byte // reused, so that a call leaves no garbage
)

func init() { guest.Handle(handle) }

func main() {}

func handle(ev guest.Event) {
	if ev.Kind == guest.KindTimer {
		count++
		return
	}
	err := command(string(ev.Payload))
	if err != nil {
		ev.Fail(1)
	}
	if ev.Kind != guest.KindCall {
		return
	}
	if err != nil {
		reply = append(reply[:0], err.Error()...)
	} else {
		reply = strconv.AppendInt(reply[:0], count, 10)
	}
	ev.Reply(reply)
}

func command(line string) error {
	verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch verb {
	case "add":
		n, err := strconv.ParseInt(arg, 10, 64)
		if err != nil {
			return fmt.Errorf("add: want a whole number, got %q", arg)
		}
		count += n
	case "get":
	case "reset":
		count = 0
	case "every":
		d, err := time.ParseDuration(arg)
		if err != nil || d <= 0 {
			return fmt.Errorf("every: want an interval such as 100ms, got %q", arg)
		}
		return guest.SetTimer(ticker, d, d)
	case "stop":
		return guest.CancelTimer(ticker)
	default:
		return fmt.Errorf("unknown command %q: want add N, get, reset, every DURATION or stop", verb)
	}
	return nil
}
