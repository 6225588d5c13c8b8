package manifest

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
)

// A Quantile is the share of cases, from 0.5 to below 1, written as a
// percentile: p50, p99.9.
type Quantile float64

const quantilePattern = `p[5-9][0-9](\.[0-9]{1,3})?`

var quantileRE = regexp.MustCompile(`^` + quantilePattern + `$`)

// String writes q as a percentile with at most three decimals.
func (q Quantile) String() string {
	return "p" + strconv.FormatFloat(math.Round(float64(q)*1e5)/1e3, 'f', -1, 64)
}

// MarshalText implements encoding.TextMarshaler.
func (q Quantile) MarshalText() ([]byte, error) { return []byte(q.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (q *Quantile) UnmarshalText(b []byte) error { return q.set(string(b)) }

func (q *Quantile) set(s string) error {
	if !quantileRE.MatchString(s) {
		if v, err := strconv.ParseFloat(s, 64); err == nil && v >= 0.5 && v < 1 {
			return fmt.Errorf("%q is no percentile; say %s", s, Quantile(v))
		}
		return fmt.Errorf("%q is no percentile", s)
	}
	v, err := strconv.ParseFloat(s[1:], 64)
	if err != nil {
		return fmt.Errorf("%q is no percentile", s)
	}
	*q = Quantile(v / 100)
	return nil
}

func (*Quantile) form() form {
	return form{pattern: quantilePattern, accepted: "a percentile from p50 to p99.999"}
}
