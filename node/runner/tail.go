package runner

import (
	"strings"
	"sync"
)

// A tail keeps the two ends of what was written to a standard error: the first
// lines, where a crash names its reason, and the last ones. The zero tail is
// empty.
type tail struct {
	mu   sync.Mutex
	head []byte
	last []byte
}

const (
	tailHead = 2 << 10 // bytes
	tailLast = 4 << 10 // bytes
)

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

// line adds a line.
func (t *tail) line(s string) {
	_, _ = t.Write([]byte(s)) // never fails
	_, _ = t.Write([]byte{'\n'})
}

// reset forgets everything.
func (t *tail) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.head, t.last = t.head[:0], t.last[:0]
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
