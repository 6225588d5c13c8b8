package manifest

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
)

// A Size is a number of bytes written with its unit: 64KiB, 1.5GiB.
type Size int64

const sizePattern = `[0-9]+(\.[0-9]+)?(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)`

var (
	sizeRE    = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)$`)
	sizeUnits = map[string]float64{
		"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
		"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	}
)

// String writes s in the largest binary unit of which it is a multiple.
func (s Size) String() string {
	for _, u := range [...]struct {
		name  string
		shift uint
	}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if s != 0 && s&(1<<u.shift-1) == 0 {
			return strconv.FormatInt(int64(s>>u.shift), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error { return s.set(string(b)) }

func (s *Size) set(text string) error {
	if bareNumber(text) {
		return fmt.Errorf("%q has no unit; say %sMiB or %sB", text, text, text)
	}
	m := sizeRE.FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("%q is no size", text)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	n *= sizeUnits[m[2]]
	// Beyond 2^53 a float64 would round silently.
	if err != nil || n != math.Trunc(n) || n > 1<<53 {
		return fmt.Errorf("%q is no whole number of bytes up to 2^53", text)
	}
	*s = Size(n)
	return nil
}

func (*Size) form() form {
	return form{pattern: sizePattern, accepted: "a number and its unit, as in 64KiB, 256MiB, 1.5GiB; units are B, KiB, MiB, GiB, TiB, kB, MB, GB, TB"}
}
