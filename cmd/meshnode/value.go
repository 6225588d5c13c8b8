package main

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"meshnode/node"
	"meshnode/node/control"
)

// flagError says which flag was wrong and, where it exists, which was meant.
func flagError(cmd *cobra.Command, err error) error {
	e := usagef("%s", err)
	var inv *pflag.InvalidValueError
	var none *pflag.NotExistError
	switch {
	case errors.As(err, &inv):
		e.Message = fmt.Sprintf("--%s: %s", inv.GetFlag().Name, inv.Unwrap())
	case errors.As(err, &none):
		e.Message = fmt.Sprintf("`%s` has no flag --%s", cmd.CommandPath(), none.GetSpecifiedName())
		if len(none.GetSpecifiedName()) == 1 {
			e.Message = fmt.Sprintf("`%s` has no flag -%s", cmd.CommandPath(), none.GetSpecifiedName())
		}
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := control.Near(none.GetSpecifiedName(), names); len(near) > 0 {
			e.Hint = "did you mean --" + strings.Join(near, " or --") + "?"
		}
	}
	return e
}

// A sizeValue is a number of bytes with its unit.
type sizeValue struct {
	bytes    uint64
	min, max uint64
}

var sizeUnits = []struct {
	name  string
	bytes uint64
}{
	{"B", 1},
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
}

func parseSize(s string) (uint64, error) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit := strings.TrimSpace(s[len(digits):])
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || n < 0 || math.IsInf(n, 0) || math.IsNaN(n) || strings.ContainsAny(digits, "eExXpP_+") {
		return 0, fmt.Errorf("%q is no size; sizes look like 256MiB", s)
	}
	if unit == "" {
		return 0, fmt.Errorf("%q has no unit; say %sMiB or %sB", s, digits, digits)
	}
	for _, u := range sizeUnits {
		if u.name != unit {
			continue
		}
		b := n * float64(u.bytes)
		if b != math.Trunc(b) || b > 1<<53 {
			return 0, fmt.Errorf("%q is no whole number of bytes", s)
		}
		return uint64(b), nil
	}
	var names []string
	for _, u := range sizeUnits {
		names = append(names, u.name)
	}
	return 0, fmt.Errorf("%q has the unknown unit %q; units are %s", s, unit, strings.Join(names, ", "))
}

func (v *sizeValue) Set(s string) error {
	n, err := parseSize(s)
	switch {
	case err != nil:
		return err
	case n < v.min || v.max > 0 && n > v.max:
		return fmt.Errorf("%q is out of range; it goes from %s to %s", s, control.FormatBytes(v.min), control.FormatBytes(v.max))
	}
	v.bytes = n
	return nil
}

func (v *sizeValue) String() string {
	if v.bytes == 0 {
		return ""
	}
	return strings.ReplaceAll(control.FormatBytes(v.bytes), " ", "")
}
func (v *sizeValue) Type() string { return "size" }

// A durationValue is a length of time with its unit, above zero unless zero
// has a meaning.
type durationValue struct {
	d      time.Duration
	zeroOK bool
}

func (v *durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	switch {
	case err == nil && s == "0" && v.zeroOK:
	case err != nil || s == "0":
		if _, numErr := strconv.ParseFloat(s, 64); numErr == nil {
			return fmt.Errorf("%q has no unit; say %ss or %sms", s, s, s)
		}
		return fmt.Errorf("%q is no duration; durations look like 10s, 1m30s or 250ms", s)
	case d < 0 || d == 0 && !v.zeroOK:
		return fmt.Errorf("%q must be more than 0s", s)
	}
	v.d = d
	return nil
}

func (v *durationValue) String() string {
	if v.d == 0 {
		return ""
	}
	s := v.d.String() // 1h0m0s
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
func (v *durationValue) Type() string { return "duration" }

// An enumValue is one of a few words.
type enumValue struct {
	value    string
	accepted []string
}

func (v *enumValue) Set(s string) error {
	for _, a := range v.accepted {
		if s == a {
			v.value = s
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", s, strings.Join(v.accepted, ", "))
}
func (v *enumValue) String() string { return v.value }
func (v *enumValue) Type() string   { return strings.Join(v.accepted, "|") }

// enumFlag adds a flag that takes one of a few words and completes them.
func enumFlag(cmd *cobra.Command, v *enumValue, name, short, usage string, accepted []string) {
	v.accepted = accepted
	cmd.Flags().VarP(v, name, short, usage)
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(accepted, cobra.ShellCompDirectiveNoFileComp))
}

// An addrValue is a host:port, where the host may be missing.
type addrValue struct {
	addr     string
	needHost bool
	loopback bool // nothing but the machine itself, or "off"
}

func (v *addrValue) Set(s string) error {
	if v.loopback && s == "off" {
		v.addr = ""
		return nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT", s)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q has the port %q; ports go from 0 to 65535", s, port)
	}
	if v.needHost && host == "" {
		return fmt.Errorf("%q has no host; it must be an address that others can reach", s)
	}
	if v.needHost && port == "0" {
		return fmt.Errorf("%q has the port 0, which nobody can reach", s)
	}
	if v.loopback && host != "localhost" {
		if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
			return fmt.Errorf("%q is open to other machines; metrics are served on loopback only, as 127.0.0.1:9464, or off", s)
		}
	}
	v.addr = s
	return nil
}
func (v *addrValue) String() string { return v.addr }
func (v *addrValue) Type() string   { return "HOST:PORT" }

// An addrsValue collects the addresses of a flag given several times.
type addrsValue struct{ addrs []string }

func (v *addrsValue) Set(s string) error {
	one := addrValue{needHost: true}
	if err := one.Set(s); err != nil {
		return err
	}
	v.addrs = append(v.addrs, one.addr)
	return nil
}
func (v *addrsValue) String() string { return strings.Join(v.addrs, " ") }
func (v *addrsValue) Type() string   { return "HOST:PORT" }

// A pairsValue collects the KEY=VALUE of a flag given several times.
type pairsValue struct{ pairs []string }

func (v *pairsValue) Set(s string) error {
	if k, _, ok := strings.Cut(s, "="); !ok || k == "" {
		return fmt.Errorf("%q is not KEY=VALUE", s)
	}
	v.pairs = append(v.pairs, s)
	return nil
}
func (v *pairsValue) String() string { return strings.Join(v.pairs, " ") }
func (v *pairsValue) Type() string   { return "KEY=VALUE" }

func (v *pairsValue) labels() map[string]string {
	if len(v.pairs) == 0 {
		return nil
	}
	m := make(map[string]string, len(v.pairs))
	for _, p := range v.pairs {
		k, val, _ := strings.Cut(p, "=")
		m[k] = val
	}
	return m
}

// An interfacesValue collects the interfaces of this host, each given once.
type interfacesValue struct {
	list  []node.Interface
	texts []string
}

func (v *interfacesValue) Set(s string) error {
	f, err := node.ParseInterface(s)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(v.list, func(g node.Interface) bool { return g.Name == f.Name }) {
		return fmt.Errorf("interface %s is given twice", f.Name)
	}
	v.list, v.texts = append(v.list, f), append(v.texts, s)
	return nil
}
func (v *interfacesValue) String() string { return strings.Join(v.texts, " ") }
func (v *interfacesValue) Type() string   { return "NAME[=SOURCE]" }

// A sizesValue is a list of numbers of bytes with their units, as 16MiB,64MiB.
type sizesValue struct {
	sizes    []uint64
	min, max uint64
}

func (v *sizesValue) Set(s string) error {
	var sizes []uint64
	for part := range strings.SplitSeq(s, ",") {
		one := sizeValue{min: v.min, max: v.max}
		if err := one.Set(part); err != nil {
			return err
		}
		sizes = append(sizes, one.bytes)
	}
	v.sizes = sizes
	return nil
}

func (v *sizesValue) String() string {
	var parts []string
	for _, n := range v.sizes {
		parts = append(parts, strings.ReplaceAll(control.FormatBytes(n), " ", ""))
	}
	return strings.Join(parts, ",")
}
func (v *sizesValue) Type() string { return "SIZE,..." }

// A wordsValue is a list of some of a few words.
type wordsValue struct {
	words    []string
	accepted []string
}

func (v *wordsValue) Set(s string) error {
	var words []string
	for part := range strings.SplitSeq(s, ",") {
		one := enumValue{accepted: v.accepted}
		if err := one.Set(part); err != nil {
			return err
		}
		words = append(words, part)
	}
	v.words = words
	return nil
}
func (v *wordsValue) String() string { return strings.Join(v.words, ",") }
func (v *wordsValue) Type() string   { return "WORD,..." }
