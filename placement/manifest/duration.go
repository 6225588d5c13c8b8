package manifest

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// A Duration is a length of time written with its unit: 250ms, 1m30s.
type Duration time.Duration

const durationPattern = `([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+`

var durationRE = regexp.MustCompile(`^` + durationPattern + `$`)

// D returns the duration in Go's type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// Seconds returns the duration in seconds.
func (d Duration) Seconds() float64 { return time.Duration(d).Seconds() }

// String writes d as Go does, without the zero units at its end.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error { return d.set(string(b)) }

func (d *Duration) set(s string) error {
	if bareNumber(s) {
		return fmt.Errorf("%q has no unit; say %sms or %ss", s, s, s)
	}
	if !durationRE.MatchString(s) {
		return fmt.Errorf("%q is no duration", s)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is no duration that can be counted in nanoseconds", s)
	}
	*d = Duration(v)
	return nil
}

func (*Duration) form() form {
	return form{pattern: durationPattern, accepted: "a number and its unit, as in 250ms, 10s, 1m30s; units are ns, us, ms, s, m, h"}
}
