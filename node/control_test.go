package node

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"meshnode/mesh"
)

// A request that a peer has not taken is sent again, with its body, a few times.
func TestPeerRepeats(t *testing.T) {
	notTaken := fmt.Errorf("read the answer: %w: %w", mesh.ErrUnreachable, mesh.ErrNotTaken)
	for _, c := range []struct {
		body  string
		fails []error
		tries int
		err   error
	}{
		{"", nil, 1, nil},
		{"", []error{notTaken}, 2, nil},
		{"body", []error{notTaken, notTaken}, 3, nil},
		{"body", []error{notTaken, notTaken, notTaken}, 3, mesh.ErrNotTaken},
		{"body", []error{mesh.ErrUnreachable}, 1, mesh.ErrUnreachable},
	} {
		tries := 0
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://peer/", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := repeater{roundTrip(func(r *http.Request) (*http.Response, error) {
			tries++
			if b, err := io.ReadAll(r.Body); err != nil || string(b) != c.body {
				t.Errorf("%v: try %d has body %q, %v", c, tries, b, err)
			}
			if tries <= len(c.fails) {
				return nil, c.fails[tries-1]
			}
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
		})}.RoundTrip(r)
		if tries != c.tries || !errors.Is(err, c.err) || (err == nil) != (resp != nil) {
			t.Errorf("%v: %d tries, response %v, %v", c, tries, resp, err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
