package netlab

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	nodeDevice  = "mesh0"
	probeDevice = "probe0"

	// deviceQueue is how many packets wait in the kernel for the emulator.
	// The default of 500 is soon full when it has to share its CPU, and what
	// is dropped there is not the emulated link's doing.
	deviceQueue = 20000
)

// openTUN makes a TUN device in the network namespace of the calling thread
// and returns its file, which does not block. The device goes away with it.
func openTUN(name string) (int, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("create TUN device %s: %w", name, err)
	}
	return fd, nil
}

// configure calls set, which does netdevice(7) ioctls, with a socket in the
// network namespace of the calling thread.
func configure(name string, set func(fd int, req func() *unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.NewIfreq(name); err != nil {
		return err
	}
	return set(fd, func() *unix.Ifreq {
		r, _ := unix.NewIfreq(name)
		return r
	})
}

// setUp brings a device up.
func setUp(name string) error {
	return configure(name, func(fd int, req func() *unix.Ifreq) error {
		r := req()
		r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
			return fmt.Errorf("bring up %s: %w", name, err)
		}
		return nil
	})
}

// setQueue sets how many packets wait in a device for the program behind it.
// It speaks rtnetlink(7), for which being root in the namespace is enough;
// the ioctl SIOCSIFTXQLEN wants to be root of the machine.
func setQueue(name string, packets uint32) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink socket: %w", err)
	}
	defer unix.Close(fd)

	//	nlmsghdr   len u32, type u16, flags u16, seq u32, pid u32
	//	ifinfomsg  family u8, pad u8, type u16, index i32, flags u32, change u32
	//	rtattr     len u16, type u16, value u32
	const size = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg + unix.SizeofRtAttr + 4
	order := binary.NativeEndian
	b := order.AppendUint32(nil, size)
	b = order.AppendUint16(b, unix.RTM_SETLINK)
	b = order.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = append(b, make([]byte, 4+4+4)...) // seq, pid, family to type
	b = order.AppendUint32(b, uint32(link.Index))
	b = append(b, make([]byte, 4+4)...)
	b = order.AppendUint16(b, unix.SizeofRtAttr+4)
	b = order.AppendUint16(b, unix.IFLA_TXQLEN)
	b = order.AppendUint32(b, packets)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink send: %w", err)
	}

	// The answer is an nlmsgerr: a header, an error number, our header.
	var answer [256]byte
	n, _, err := unix.Recvfrom(fd, answer[:], 0)
	if err != nil {
		return fmt.Errorf("netlink receive: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 || order.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("netlink answers with %d bytes that are no acknowledgement", n)
	}
	if code := int32(order.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return fmt.Errorf("set queue length of %s: %w", name, unix.Errno(-code))
	}
	return nil
}

// setAddr gives a device its one IPv4 address, in place of the one it had.
func setAddr(name string, addr netip.Addr) error {
	mask := [4]byte{0xff} // all nodes are in 10/8
	return configure(name, func(fd int, req func() *unix.Ifreq) error {
		for _, step := range []struct {
			what    string
			request uint
			value   [4]byte
		}{{"address", unix.SIOCSIFADDR, addr.As4()}, {"netmask", unix.SIOCSIFNETMASK, mask}} {
			r := req()
			if err := r.SetInet4Addr(step.value[:]); err != nil {
				return err
			}
			if err := unix.IoctlIfreq(fd, step.request, r); err != nil {
				return fmt.Errorf("set %s of %s to %v: %w", step.what, name, netip.AddrFrom4(step.value), err)
			}
		}
		return nil
	})
}
