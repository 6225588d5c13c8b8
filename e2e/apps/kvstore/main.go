//go:build wasip1

// Kvstore is a worker with much memory: a hash table of a fixed size (package
// store). Calls carry a command as text; KEY has no spaces, and VALUE is the
// rest of the payload as it is, any bytes:
//
//	init SIZE [SLOT]         empties the table and gives it that much memory,
//	                         such as 64MiB, in slots of that size, such as 512
//	                         or 4KiB (1KiB if not said)
//	put KEY VALUE
//	get KEY                  answers the value as it is
//	del KEY
//	scan [PREFIX [LIMIT [FROM]]]
//	                         answers the keys with that prefix, 1000 if not
//	                         said, each with the length of its value on a line,
//	                         and "more FROM" on the last one if there are more;
//	                         PREFIX * is all keys
//	fill N SIZE SEED         puts N entries k0, k1, ... with values of SIZE bytes;
//	fill                     as many and as large as there is room for, seed 1
//	touch random N SEED      writes to N pages of 4 KiB drawn from the seed,
//	touch range FIRST N      or to N pages in a row, and changes no entry
//	churn RATE [hot=SIZE]    from now on writes to RATE bytes of pages a second,
//	                         such as 10MiB, each page once a round in a scattered
//	                         order; with hot, only to the first SIZE bytes of the
//	                         table. 0B ends it. It changes no entry
//	pace                     answers how the churn's ticks, one every 10 ms, went
//	                         since the last pace: their number, the longest time
//	                         from one to the next on the worker's clock, which
//	                         stands still while the worker is handed over, and on
//	                         the machine's, which does not, and how long they took
//	digest                   a hash of the entries, in hexadecimal
//	digest arena             a hash of the table's memory, every byte of it
//	stats
//
// A new worker has a table of 1 MiB. Codes: 1 for a command that makes no
// sense, 2 for a key that is not there, 3 for a full table; the reply is then
// the reason. One-way messages work as calls do, unanswered.
package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"meshnode/e2e/apps/kvstore/churn"
	"meshnode/e2e/apps/kvstore/store"
	"meshnode/node/guest"
)

var (
	table store.Store
	reply []byte // reused, so that a call leaves no garbage

	writes churn.Churn
	pace   churn.Pace

	errNotFound = errors.New("no such key")
)

func init() {
	if err := table.Init(1<<20, 1<<10); err != nil {
		panic(err)
	}
	guest.Handle(handle)
}

// The churn's timer.
const (
	churnTimer = 1
	churnTick  = 10 * time.Millisecond
	churnSeed  = 1
)

func main() {}

func handle(ev guest.Event) {
	if ev.Kind == guest.KindTimer {
		tick()
		return
	}
	reply = reply[:0]
	if err := command(ev.Payload); err != nil {
		switch {
		case errors.Is(err, errNotFound):
			ev.Fail(2)
		case errors.Is(err, store.ErrFull):
			ev.Fail(3)
		default:
			ev.Fail(1)
		}
		reply = append(reply[:0], err.Error()...)
	}
	if ev.Kind == guest.KindCall {
		ev.Reply(reply)
	}
}

func command(line []byte) error {
	verb, rest, _ := bytes.Cut(line, []byte(" "))
	switch string(verb) {
	case "put":
		key, value, _ := bytes.Cut(rest, []byte(" "))
		return table.Put(key, value)
	case "get":
		value, ok := table.Get(rest)
		if !ok {
			return errNotFound
		}
		reply = append(reply, value...)
		return nil
	case "del":
		if !table.Delete(rest) {
			return errNotFound
		}
		return nil
	}

	args := strings.Fields(string(rest))
	switch string(verb) {
	case "init":
		return initTable(args)
	case "scan":
		return scan(args)
	case "fill":
		n := []uint64{uint64(table.Stats().Slots), uint64(table.Room()) - 16, 1}
		if len(args) > 0 {
			var err error
			if n, err = numbers("fill or fill N SIZE SEED", args, 3); err != nil {
				return err
			}
		}
		done, err := table.Fill(int(min(n[0], store.MaxSize)), int(min(n[1], store.MaxSize)), n[2])
		if err != nil {
			return fmt.Errorf("after %d entries: %w", done, err)
		}
	case "touch":
		usage := "touch random N SEED or touch range FIRST N"
		if len(args) == 0 {
			return errors.New("want " + usage)
		}
		n, err := numbers(usage, args[1:], 2)
		if err != nil {
			return err
		}
		switch args[0] {
		case "random":
			table.TouchRandom(int(min(n[0], store.MaxSize)), n[1])
		case "range":
			table.TouchRange(int(min(n[0], store.MaxSize)), int(min(n[1], store.MaxSize)))
		default:
			return errors.New("want " + usage)
		}
	case "churn":
		return startChurn(args)
	case "pace":
		if len(args) > 0 {
			return errors.New("want pace")
		}
		reply = pace.Append(reply)
		pace.Reset()
	case "digest":
		var d [32]byte
		switch {
		case len(args) == 0:
			d = table.Digest()
		case len(args) == 1 && args[0] == "arena":
			d = table.DigestArena()
		default:
			return errors.New("want digest or digest arena")
		}
		reply = hex.AppendEncode(reply, d[:])
	case "stats":
		s := table.Stats()
		reply = fmt.Appendf(reply, "slots=%d slotBytes=%d used=%d valueBytes=%d arenaBytes=%d pages=%d touches=%d",
			s.Slots, s.SlotBytes, s.Used, s.ValueBytes, s.ArenaBytes, s.Pages, s.Touches)
	default:
		return fmt.Errorf("unknown command %q: want init, put, get, del, scan, fill, touch, churn, pace, digest or stats", verb)
	}
	return nil
}

// tick is an event of the churn.
func tick() {
	began, wall := guest.Now(), time.Now().UnixNano()
	writes.Step(pace.Since(began), table.Pages(), func(page int) { table.TouchRange(page, 1) })
	pace.Note(began, wall, guest.Now()-began)
}

func startChurn(args []string) error {
	const usage = "want churn RATE or churn RATE hot=SIZE"
	if len(args) != 1 && len(args) != 2 {
		return errors.New(usage)
	}
	rate, err := parseSize(args[0])
	if err != nil {
		return err
	}
	hot := 0
	if len(args) == 2 {
		value, ok := strings.CutPrefix(args[1], "hot=")
		if !ok {
			return errors.New(usage)
		}
		if hot, err = parseSize(value); err != nil {
			return err
		}
		if hot < store.PageSize {
			return fmt.Errorf("hot is %s, less than a page", value)
		}
	}
	writes = churn.New(uint64(rate), hot/store.PageSize, churnSeed)
	pace = churn.Pace{}
	if writes.Idle() {
		return guest.CancelTimer(churnTimer)
	}
	return guest.SetTimer(churnTimer, churnTick, churnTick)
}

func initTable(args []string) error {
	if len(args) != 1 && len(args) != 2 {
		return errors.New("want init SIZE [SLOT]")
	}
	size, err := parseSize(args[0])
	if err != nil {
		return err
	}
	slot := 1 << 10
	if len(args) == 2 {
		if slot, err = parseSize(args[1]); err != nil {
			return err
		}
	}
	return table.Init(size, slot)
}

func scan(args []string) error {
	prefix, limit, from := "", uint64(1000), uint64(0)
	if len(args) > 0 && args[0] != "*" {
		prefix = args[0]
	}
	if len(args) > 3 {
		return errors.New("want scan [PREFIX [LIMIT [FROM]]]")
	}
	if len(args) > 1 {
		n, err := numbers("scan [PREFIX [LIMIT [FROM]]]", append(args[1:], "0")[:2], 2)
		if err != nil {
			return err
		}
		limit, from = n[0], n[1]
	}
	next := table.Scan(int(min(from, store.MaxSize)), func(key, value []byte) bool {
		if !bytes.HasPrefix(key, []byte(prefix)) {
			return true
		}
		// A reply holds 1 MiB; a line at most a slot.
		if limit == 0 || len(reply) > 1<<20-store.MaxSlot-64 {
			return false
		}
		limit--
		reply = append(reply, key...)
		reply = append(reply, ' ')
		reply = strconv.AppendInt(reply, int64(len(value)), 10)
		reply = append(reply, '\n')
		return true
	})
	if next >= 0 {
		reply = fmt.Appendf(reply, "more %d\n", next)
	}
	return nil
}

// numbers reads exactly n numbers.
func numbers(usage string, args []string, n int) ([]uint64, error) {
	if len(args) != n {
		return nil, errors.New("want " + usage)
	}
	ns := make([]uint64, n)
	for i, a := range args {
		v, err := strconv.ParseUint(a, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("want %s, got %q", usage, a)
		}
		ns[i] = v
	}
	return ns, nil
}

// parseSize reads a number of bytes with the unit B, KiB or MiB, or none.
func parseSize(s string) (int, error) {
	number, unit := s, 1
	if n, ok := strings.CutSuffix(s, "MiB"); ok {
		number, unit = n, 1<<20
	} else if n, ok := strings.CutSuffix(s, "KiB"); ok {
		number, unit = n, 1<<10
	} else if n, ok := strings.CutSuffix(s, "B"); ok {
		number = n
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 || n > store.MaxSize {
		return 0, fmt.Errorf("want a size such as 64MiB or 4KiB, got %q", s)
	}
	return n * unit, nil
}
