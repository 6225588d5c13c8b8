package manifest

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// A Percent is a share, 1 being all, written with its sign: 20%.
type Percent float64

const percentPattern = `[0-9]{1,3}(\.[0-9]{1,3})?%`

var percentRE = regexp.MustCompile(`^` + percentPattern + `$`)

// String writes p with at most three decimals.
func (p Percent) String() string {
	return strconv.FormatFloat(math.Round(float64(p)*1e5)/1e3, 'f', -1, 64) + "%"
}

// MarshalText implements encoding.TextMarshaler.
func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Percent) UnmarshalText(b []byte) error { return p.set(string(b)) }

func (p *Percent) set(s string) error {
	if bareNumber(s) {
		return fmt.Errorf("%q has no unit; say %s%%", s, s)
	}
	if !percentRE.MatchString(s) {
		return fmt.Errorf("%q is no percentage", s)
	}
	v, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
	if err != nil || v > 100 {
		return fmt.Errorf("%q is more than 100%%", s)
	}
	*p = Percent(v / 100)
	return nil
}

func (*Percent) form() form {
	return form{pattern: percentPattern, accepted: "a number and a percent sign, as in 20%"}
}
