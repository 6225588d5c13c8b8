package mesh

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// maxEndpoints is how many endpoints a node advertises and is dialled at.
const maxEndpoints = 8

// validEndpoint reports whether a may be dialled: an ordinary unicast address
// and a port. Link-local addresses need a zone, which means nothing on another
// machine.
func validEndpoint(a netip.AddrPort) bool {
	ip := a.Addr()
	return a.IsValid() && a.Port() != 0 && ip.Zone() == "" &&
		!ip.Is4In6() && !ip.IsUnspecified() && !ip.IsMulticast() &&
		!ip.IsLinkLocalUnicast() && ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// normalEndpoint returns a in the one form in which addresses are compared and
// sent: IPv4 is never written as IPv6.
func normalEndpoint(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func endpointOf(a net.Addr) netip.AddrPort {
	if u, ok := a.(*net.UDPAddr); ok {
		return normalEndpoint(u.AddrPort())
	}
	return netip.AddrPort{}
}

// mergeEndpoints appends those of more to list that are valid and new, up to
// [maxEndpoints].
func mergeEndpoints(list []netip.AddrPort, more ...netip.AddrPort) []netip.AddrPort {
	for _, a := range more {
		if len(list) >= maxEndpoints {
			break
		}
		if a = normalEndpoint(a); validEndpoint(a) && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// endpointList is a list of endpoints as it travels, a CBOR byte string:
//
//	repeated at most 8 times:
//	  family  uint8    // 4 or 6
//	  addr    4 or 16 bytes
//	  port    uint16   // big endian
//
// Packed, because a record has 512 bytes for everything.
type endpointList []netip.AddrPort

func (l endpointList) appendTo(b []byte) []byte {
	for _, a := range l {
		ip := a.Addr().AsSlice()
		family := byte(4)
		if len(ip) == 16 {
			family = 6
		}
		b = append(b, family)
		b = append(b, ip...)
		b = append(b, byte(a.Port()>>8), byte(a.Port()))
	}
	return b
}

// parseEndpoints decodes what endpointList.appendTo wrote. It refuses what it
// would not have written: too many, an address nobody can dial, one twice.
func parseEndpoints(b []byte) ([]netip.AddrPort, error) {
	var list []netip.AddrPort
	for len(b) > 0 {
		var n int
		switch b[0] {
		case 4:
			n = 4
		case 6:
			n = 16
		default:
			return nil, fmt.Errorf("%w: endpoint family %d", ErrMalformed, b[0])
		}
		if len(b) < 1+n+2 {
			return nil, fmt.Errorf("%w: endpoint cut short", ErrMalformed)
		}
		ip, _ := netip.AddrFromSlice(b[1 : 1+n])
		a := netip.AddrPortFrom(ip, uint16(b[1+n])<<8|uint16(b[2+n]))
		if !validEndpoint(a) {
			return nil, fmt.Errorf("%w: endpoint %v cannot be dialled", ErrMalformed, a)
		}
		if slices.Contains(list, a) {
			return nil, fmt.Errorf("%w: endpoint %v twice", ErrMalformed, a)
		}
		if len(list) == maxEndpoints {
			return nil, fmt.Errorf("%w: more than %d endpoints", ErrMalformed, maxEndpoints)
		}
		list = append(list, a)
		b = b[1+n+2:]
	}
	return list, nil
}

// MarshalCBOR implements cbor.Marshaler.
func (l endpointList) MarshalCBOR() ([]byte, error) {
	return cborEnc.Marshal(l.appendTo(nil))
}

// UnmarshalCBOR implements cbor.Unmarshaler.
func (l *endpointList) UnmarshalCBOR(b []byte) error {
	var raw []byte
	if err := cborDec.Unmarshal(b, &raw); err != nil {
		return err
	}
	list, err := parseEndpoints(raw)
	if err != nil {
		return err
	}
	*l = list
	return nil
}

// maxHostPort bounds an endpoint given by name: a DNS name has at most 253
// characters.
const maxHostPort = 253 + 1 + 5

// checkHostPort checks that s has the form host:port, host an address or a
// name. It resolves nothing.
func checkHostPort(s string) error {
	if len(s) > maxHostPort {
		return fmt.Errorf("%w: endpoint of %d characters", ErrMalformed, len(s))
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%w: endpoint %q is not HOST:PORT", ErrMalformed, s)
	}
	if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 || port[0] == '+' {
		return fmt.Errorf("%w: endpoint %q has no port between 1 and 65535", ErrMalformed, s)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" {
			return fmt.Errorf("%w: endpoint %q has a zone", ErrMalformed, s)
		}
		return nil
	}
	if host == "" || strings.ContainsFunc(host, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
	}) {
		return fmt.Errorf("%w: endpoint %q has no valid host", ErrMalformed, s)
	}
	return nil
}

// localEndpoints returns where others may reach a socket bound to local: its
// address, or, when it listens on all of them, those of the interfaces that
// are up. Loopback counts only when there is nothing else.
func localEndpoints(local netip.AddrPort) []netip.AddrPort {
	local = normalEndpoint(local)
	if !local.Addr().IsUnspecified() {
		return mergeEndpoints(nil, local)
	}
	var own, loop []netip.AddrPort
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range ifaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // the interface has just gone
		}
		for _, a := range addrs {
			p, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			ip, ok := netip.AddrFromSlice(p.IP)
			if !ok {
				continue
			}
			ip = ip.Unmap()
			// A socket on 0.0.0.0 hears no IPv6; one on :: hears both.
			if local.Addr().Is4() && !ip.Is4() {
				continue
			}
			ap := netip.AddrPortFrom(ip, local.Port())
			if !validEndpoint(ap) {
				continue
			}
			if ip.IsLoopback() {
				loop = append(loop, ap)
			} else {
				own = append(own, ap)
			}
		}
	}
	if len(own) == 0 {
		own = loop
	}
	// A stable order: an unchanged list must compare equal, and IPv4 first
	// since most devices have one that works.
	slices.SortFunc(own, func(a, b netip.AddrPort) int {
		if a.Addr().Is4() != b.Addr().Is4() {
			if a.Addr().Is4() {
				return -1
			}
			return 1
		}
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
	})
	return mergeEndpoints(nil, own...)
}

// portOf returns the port of a HOST:PORT that [checkHostPort] passed.
func portOf(s string) uint16 {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return 0
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(p)
}
