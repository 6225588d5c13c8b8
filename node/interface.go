package node

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"meshnode/node/runner"
)

// An Interface is something of this node's host, such as a camera or a
// location, that it tells the others it has. With File or Command, workers can
// read it; without, it only counts where a manifest asks for its name.
type Interface struct {
	Name string
	// File is read whole for each reading.
	File string
	// Command is run for each reading, without a shell; its standard output is
	// the reading. It has the daemon's rights.
	Command []string
}

// ParseInterface reads NAME, NAME=file:PATH or NAME=exec:COMMAND, whose words
// are divided by spaces.
func ParseInterface(s string) (Interface, error) {
	name, source, has := strings.Cut(s, "=")
	f := Interface{Name: name}
	if !labelForm.MatchString(name) {
		return f, fmt.Errorf("host interface %.80q: want 1 to 63 letters, digits and . _ / -, a letter or digit first and last", name)
	}
	if !has {
		return f, nil
	}
	kind, rest, _ := strings.Cut(source, ":")
	switch kind {
	case "file":
		f.File = rest
	case "exec":
		f.Command = strings.Fields(rest)
	default:
		return f, fmt.Errorf("host interface %s: %.80q is no source; sources are file:PATH and exec:COMMAND", name, source)
	}
	if f.File == "" && len(f.Command) == 0 {
		return f, fmt.Errorf("host interface %s: no path or command behind %s", name, kind)
	}
	return f, nil
}

func interfaceNames(list []Interface) (names []string) {
	for _, f := range list {
		names = append(names, f.Name)
	}
	return names
}

const (
	// interfaceTime bounds a read, from the worker's call to the answer: the
	// worker handles no other event meanwhile, and does not move.
	interfaceTime = time.Second
	// interfaceFresh is for how long a command's output is the answer to who else
	// asks: workers must not be able to start commands without end.
	interfaceFresh = 100 * time.Millisecond
	// interfaceRest is for how long a worker is told that there is no reading
	// after one took too long: else it would wait in each event.
	interfaceRest = time.Second
)

// A source is an interface of this host that can be read. Safe for concurrent
// use.
type source struct {
	Interface

	mu    sync.Mutex // held while a command runs; those who wait take what it says
	began time.Time
	data  []byte
	err   error
}

// sources returns what of a host's interfaces can be read, by name.
func sources(list []Interface) map[string]*source {
	m := make(map[string]*source)
	for _, f := range list {
		if f.File != "" || len(f.Command) > 0 {
			m[f.Name] = &source{Interface: f}
		}
	}
	return m
}

// read takes a reading, at most runner.MaxReading bytes, which the caller must
// not change.
func (s *source) read(ctx context.Context) ([]byte, error) {
	if s.File != "" {
		return s.readFile()
	}
	asked := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil { // it waited for a command that took all of its time
		return nil, context.Cause(ctx)
	}
	if asked.Sub(s.began) > interfaceFresh {
		s.began = time.Now()
		s.data, s.err = s.run(ctx)
	}
	return s.data, s.err
}

func (s *source) readFile() ([]byte, error) {
	// Opening a pipe, or some devices, may block for ever.
	if info, err := os.Stat(s.File); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file; exec: can read others", s.File)
	}
	f, err := os.Open(s.File)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, runner.MaxReading+1))
	if err == nil && len(b) > runner.MaxReading {
		err = fmt.Errorf("%s is larger than a reading may be, %d bytes", s.File, runner.MaxReading)
	}
	return b, err
}

// run runs the command. It is not given up with the first who asked, since
// others may wait for it, but has no more time than that one.
func (s *source) run(ctx context.Context) ([]byte, error) {
	limit := time.Now().Add(interfaceTime)
	if at, ok := ctx.Deadline(); ok && at.Before(limit) {
		limit = at
	}
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), limit)
	defer cancel()
	out, err := runner.RunCommand(ctx, s.Command, runner.MaxReading)
	if ctx.Err() != nil {
		err = fmt.Errorf("%s took longer than %v", s.Command[0], interfaceTime)
	}
	return out, err
}
