//go:build wasip1

// Probe is a worker that misbehaves on request, and reaches every corner of the
// host interface: it is there for tests of what happens then. Commands are
// text:
//
//	echo TEXT              answers TEXT
//	fail CODE TEXT         ends with that code, answers TEXT
//	log LEVEL TEXT         logs; LEVEL is debug, info, warn or error
//	print TEXT             writes a line to standard output
//	warn TEXT              writes a line to standard error
//	now                    answers the worker's clock in nanoseconds
//	time                   answers the wall clock in nanoseconds since 1970
//	random N               answers N random bytes in hexadecimal
//	args, env              answer the arguments and the environment, a line each
//	send NAME TEXT         sends TEXT to that worker when the event ends
//	sends N NAME           sends N messages, 0 to N-1, to that worker
//	inbox                  answers how many one-way messages came that were not
//	                       commands, and the last of them
//	timer ID AFTER EVERY   arms a timer; EVERY 0s is once
//	cancel ID              disarms it
//	timers N               arms N timers, ids 1 to N, an hour from now
//	fired                  answers how often each timer has expired, as ID=COUNT
//	late                   answers the previous late command, which is too late
//	big N                  answers N bytes
//	grow MIB               allocates that much memory, writes to every page of
//	                       it, and keeps it
//	memory                 answers how many MiB were grown
//	sleep D                stays in the handler for that long
//	trap                   panics
//	exit CODE              calls exit
//	deadlock               waits for ever for what cannot come
//	spin                   loops for ever
//
// What the host refuses ends with its result code and the error as the reply;
// a command that makes no sense ends with code 100.
package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"meshnode/node/guest"
)

const badCommand = 100

var (
	grown [][]byte
	fired = map[uint64]int{}
	inbox int
	last  string
	kept  *guest.Event
)

func init() { guest.Handle(handle) }

func main() {}

func handle(ev guest.Event) {
	if ev.Kind == guest.KindTimer {
		fired[ev.ID]++
		return
	}
	answer, err := command(ev, string(ev.Payload))
	if ev.Kind == guest.KindSend && errors.Is(err, errUnknown) {
		inbox++
		last = string(ev.Payload)
		return
	}
	if err != nil {
		var code guest.Errno
		if !errors.As(err, &code) {
			code = badCommand
		}
		ev.Fail(int32(code))
		answer = err.Error()
	}
	if ev.Kind == guest.KindCall {
		if err := ev.Reply([]byte(answer)); err != nil {
			ev.Reply([]byte(err.Error()))
			var code guest.Errno
			errors.As(err, &code)
			ev.Fail(int32(code))
		}
	}
}

var errUnknown = errors.New("unknown command")

func command(ev guest.Event, line string) (string, error) {
	verb, rest, _ := strings.Cut(line, " ")
	word, text, _ := strings.Cut(rest, " ")
	switch verb {
	case "echo":
		return rest, nil
	case "fail":
		code, err := strconv.ParseInt(word, 10, 32)
		ev.Fail(int32(code))
		return text, err
	case "log":
		levels := map[string]guest.Level{
			"debug": guest.LevelDebug, "info": guest.LevelInfo,
			"warn": guest.LevelWarn, "error": guest.LevelError,
		}
		level, ok := levels[word]
		if !ok {
			return "", fmt.Errorf("log: unknown level %q", word)
		}
		guest.Log(level, "%s", text)
		return "", nil
	case "print":
		_, err := fmt.Println(rest)
		return "", err
	case "warn":
		_, err := fmt.Fprintln(os.Stderr, rest)
		return "", err
	case "now":
		return strconv.FormatInt(int64(guest.Now()), 10), nil
	case "time":
		return strconv.FormatInt(time.Now().UnixNano(), 10), nil
	case "random":
		n, err := number(word, guest.MaxPayload/2)
		if err != nil {
			return "", err
		}
		p := make([]byte, n)
		err = guest.Random(p)
		return hex.EncodeToString(p), err
	case "args":
		return strings.Join(os.Args, "\n"), nil
	case "env":
		return strings.Join(os.Environ(), "\n"), nil
	case "send":
		return "", guest.Send(word, []byte(text))
	case "sends":
		n, err := number(word, 1<<20)
		for i := 0; i < n && err == nil; i++ {
			err = guest.Send(text, strconv.AppendInt(nil, int64(i), 10))
		}
		return "", err
	case "inbox":
		return fmt.Sprintf("%d %s", inbox, last), nil
	case "timer":
		id, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return "", err
		}
		first, second, _ := strings.Cut(text, " ")
		after, err := time.ParseDuration(first)
		if err != nil {
			return "", err
		}
		every, err := time.ParseDuration(second)
		if err != nil {
			return "", err
		}
		return "", guest.SetTimer(id, after, every)
	case "cancel":
		id, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return "", err
		}
		return "", guest.CancelTimer(id)
	case "timers":
		n, err := number(word, 1<<20)
		for i := 0; i < n && err == nil; i++ {
			err = guest.SetTimer(uint64(i)+1, time.Hour, 0)
		}
		return "", err
	case "fired":
		var b strings.Builder
		for _, id := range slices.Sorted(maps.Keys(fired)) {
			fmt.Fprintf(&b, "%d=%d\n", id, fired[id])
		}
		return b.String(), nil
	case "late":
		var err error
		if kept != nil {
			err = kept.Reply([]byte("to somebody else"))
			kept.Fail(42)
		}
		kept = &ev
		return "", err
	case "big":
		n, err := number(word, 1<<30)
		return strings.Repeat("x", n), err
	case "grow":
		n, err := number(word, 4096)
		if err != nil {
			return "", err
		}
		for range n {
			p := make([]byte, 1<<20)
			for i := 0; i < len(p); i += 4096 {
				p[i] = byte(len(grown)) + 1
			}
			grown = append(grown, p)
		}
		return strconv.Itoa(len(grown)), nil
	case "memory":
		return strconv.Itoa(len(grown)), nil
	case "sleep":
		d, err := time.ParseDuration(word)
		time.Sleep(d)
		return "", err
	case "trap":
		panic("trap was asked for")
	case "exit":
		code, err := number(word, 255)
		if err != nil {
			return "", err
		}
		os.Exit(code)
	case "deadlock":
		select {}
	case "spin":
		for {
			inbox++
		}
	}
	return "", fmt.Errorf("%w %q", errUnknown, verb)
}

// number reads a count of 0 to limit.
func number(s string, limit int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > limit {
		return 0, fmt.Errorf("want a number of at most %d, got %q", limit, s)
	}
	return n, nil
}
