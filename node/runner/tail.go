package runner

import (
	"strings"
	"sync"
)

// A tail keeps the end of what a child wrote to its standard error, where a Go
// runtime that crashes says why: the first lines, which name the reason, and
// the last ones.
type tail struct {
	mu   sync.Mutex
	head []byte
	last []byte
}

const (
	tailHead = 2 << 10 // bytes
	tailLast = 4 << 10 // bytes
)

func newTail() *tail { return &tail{} }

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if room := tailHead - len(t.head); room > 0 {
		k := min(room, len(p))
		t.head = append(t.head, p[:k]...)
		p = p[k:]
	}
	if len(p) > tailLast {
		p = p[len(p)-tailLast:]
	}
	t.last = append(t.last, p...)
	if over := len(t.last) - tailLast; over > 0 {
		t.last = t.last[:copy(t.last, t.last[over:])]
	}
	return n, nil
}

// lines returns what is kept, one line each.
func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.head) == 0 {
		return nil
	}
	text := string(t.head)
	if len(t.last) == tailLast {
		text += "\n[...]\n"
	}
	text = strings.TrimRight(text+string(t.last), "\n")
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.ToValidUTF8(strings.TrimRight(lines[i], "\r"), "\uFFFD")
	}
	return lines
}
