//go:build wasip1

// Tracker is a worker that follows where its device is: it reads the host
// interface "location" and counts its readings. Commands are text:
//
//	where       answers the number of this reading and what it says
//	read NAME   answers a reading of that interface
//
// Where there is no reading, the event ends with the host's result code and the
// error as the reply.
package main

import (
	"errors"
	"fmt"
	"strings"

	"meshnode/node/guest"
)

var (
	count int
	buf   [guest.MaxReading]byte
)

func init() { guest.Handle(handle) }

func main() {}

func handle(ev guest.Event) {
	verb, name, _ := strings.Cut(string(ev.Payload), " ")
	if verb == "where" {
		name = "location"
	} else if verb != "read" {
		ev.Reply([]byte("want where, or read NAME"))
		ev.Fail(100)
		return
	}
	n, err := guest.ReadInterface(name, buf[:])
	if err != nil {
		var code guest.Errno
		errors.As(err, &code)
		ev.Fail(int32(code))
		ev.Reply([]byte(err.Error()))
		return
	}
	text := strings.TrimSpace(string(buf[:n]))
	if verb == "where" {
		count++
		text = fmt.Sprintf("%d %s", count, text)
	}
	ev.Reply([]byte(text))
}
