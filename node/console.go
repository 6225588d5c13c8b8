package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"meshnode/node/control"
	"meshnode/node/runner"
)

// A console is a command worker's standard streams as its home sees them. Each
// message becomes a line of input, each line of output a line of the worker's
// log. Input that the program has not read and output that is not in the log
// yet are in the runner, and travel in its State. It belongs to the loop.
type console struct {
	// acked is how much output has been taken, in bytes, and lines holds what of
	// it came behind the last line end, of standard output and error.
	acked uint64
	lines [2][]byte
	// full is set while the program has too much input that it has not read.
	full bool
}

const (
	// endOfInput is the message that ends a program's input, as Ctrl-D does at a
	// terminal.
	endOfInput = "\x04"
	// statusRefused answers a message that a program cannot take.
	statusRefused = -1
)

var streamNames = [2]string{"stdout", "stderr"}

// feed gives a program a message as a line of its input. It is taken once the
// input holds it, whether or not the program has read it: input travels.
func (w *worker) feed(ctx context.Context, m *message) error {
	refuse := func(why string) { w.inbox.done(m, reply{Status: statusRefused, Payload: []byte(why)}) }
	var err error
	switch line := m.payload; {
	case m.call:
		refuse("a command worker answers no calls: send it lines, and read what it writes in its log")
		return nil
	case string(line) == endOfInput:
		err = w.runner.EndInput(ctx)
	default:
		if !bytes.HasSuffix(line, []byte("\n")) {
			line = append(bytes.Clone(line), '\n')
		}
		err = w.runner.Push(ctx, line)
	}
	switch {
	case errors.Is(err, runner.ErrInputFull):
		w.console.full = true
		w.inbox.back(m)
		return nil
	case errors.Is(err, runner.ErrInputEnded), errors.Is(err, runner.ErrPayloadTooLarge):
		refuse(err.Error())
		return nil
	case err != nil:
		return err
	}
	w.mu.Lock()
	w.events++
	w.mu.Unlock()
	w.inbox.done(m, reply{})
	return nil
}

// takeOutput puts what the program has written into the worker's log. The error
// is how the program ended, once all of its output is there.
func (w *worker) takeOutput(ctx context.Context) error {
	c := w.console
	var ended *runner.ExitError
	for more := true; more; {
		t, err := w.runner.Take(ctx, c.acked)
		if err != nil {
			return err
		}
		w.setMemory(t.Pages)
		for _, o := range t.Output {
			c.acked += uint64(len(o.Data))
			c.lines[o.Stream-1] = w.logLines(o.Stream, append(c.lines[o.Stream-1], o.Data...))
		}
		more = len(t.Output) > 0
		ended = t.Ended
	}
	if c.full {
		c.full = false
		w.inbox.wake()
	}
	if ended == nil {
		return nil
	}
	for i, rest := range c.lines {
		if len(rest) > 0 {
			w.logLine(i+1, rest)
		}
	}
	c.lines = [2][]byte{}
	return ended
}

// logLines logs the whole lines of text, and what is too long for one, and
// returns the rest.
func (w *worker) logLines(stream int, text []byte) (rest []byte) {
	for {
		line, after, whole := bytes.Cut(text, []byte("\n"))
		if len(line) > runner.MaxLogLine {
			line, after, whole = text[:runner.MaxLogLine], text[runner.MaxLogLine:], true
		}
		if !whole {
			return bytes.Clone(text)
		}
		w.logLine(stream, line)
		text = after
	}
}

func (w *worker) logLine(stream int, line []byte) {
	w.logs.add(control.LogLine{
		Node: w.node.name(), Epoch: w.epochNow(), Level: "info", Source: streamNames[stream-1],
		Text: strings.ToValidUTF8(strings.TrimSuffix(string(line), "\r"), "\uFFFD"),
	})
}

// state returns what the image carries of the console; the rest is in the
// runner's State.
func (c *console) state() [][]byte {
	if c == nil || len(c.lines[0])+len(c.lines[1]) == 0 {
		return nil
	}
	return [][]byte{c.lines[0], c.lines[1]}
}

// restoreConsole makes a new worker's console what the image says.
func (w *worker) restoreConsole(img image) error {
	if w.console == nil {
		if img.Lines != nil {
			return errors.New("lines of output of a worker that has none")
		}
		return nil
	}
	if st := img.State.WASI.Streams; st != nil {
		w.console.acked = st.Acked
	}
	if img.Lines == nil {
		return nil
	}
	if len(img.Lines) != len(w.console.lines) {
		return fmt.Errorf("lines of output of %d streams", len(img.Lines))
	}
	for i, l := range img.Lines {
		if len(l) > runner.MaxLogLine || bytes.IndexByte(l, '\n') >= 0 {
			return errors.New("a line of output that is whole, or too long")
		}
		w.console.lines[i] = l
	}
	return nil
}

// measure finds out how much memory a program has by now.
func (w *worker) measure(ctx context.Context) error {
	if w.console == nil {
		return nil
	}
	var err error
	derr := w.do(ctx, func() {
		var t runner.Taken
		// Nothing is taken by this: it is not acknowledged. A request cannot be
		// given up without ending the runner.
		if t, err = w.runner.Take(context.WithoutCancel(ctx), w.console.acked); err == nil {
			w.setMemory(t.Pages)
			// The runner rings only once for what it has told.
			w.look()
		}
	})
	return errors.Join(derr, err)
}

// look makes the loop take output soon.
func (w *worker) look() {
	select {
	case w.attention <- struct{}{}:
	default:
	}
}

func (w *worker) setMemory(pages uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.memory = uint64(pages) * runner.WasmPage
}
