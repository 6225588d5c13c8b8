package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// udpMain is the program `udp` of scripts: `udp echo ADDR` sends back what it
// gets for ever; `udp ping ADDR COUNT` sends until so many answers have come,
// and `udp try ADDR COUNT` sends just that many and looks for no answer.
func udpMain() {
	if err := udp(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "udp:", err)
		os.Exit(1)
	}
}

func udp(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "echo":
		conn, err := net.ListenPacket("udp4", args[1])
		if err != nil {
			return err
		}
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return err
			}
			conn.WriteTo(buf[:n], from)
		}
	case len(args) == 3 && (args[0] == "ping" || args[0] == "try"):
		count, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		conn, err := net.Dial("udp4", args[1])
		if err != nil {
			return err
		}
		defer conn.Close()
		if args[0] == "ping" {
			return udpPing(conn, count)
		}
		for i := range count {
			conn.Write([]byte(strconv.Itoa(i)))
		}
		return nil
	}
	return fmt.Errorf("usage: udp echo ADDR | udp ping|try ADDR COUNT")
}

// udpPing sends until so many answers have come. An answer to a closed socket
// would be refused, with a packet that the links count: it leaves none behind
// that is merely late.
func udpPing(conn net.Conn, count int) error {
	open := 0 // packets neither answered nor refused
	buf := make([]byte, 2048)
	read := func(wait time.Duration) (answered, refused bool) {
		conn.SetReadDeadline(time.Now().Add(wait))
		_, err := conn.Read(buf)
		answered, refused = err == nil, errors.Is(err, syscall.ECONNREFUSED)
		if answered || refused {
			open--
		}
		return answered, refused
	}
	give := time.Now().Add(patience)
	for answers, sent := 0, 0; answers < count; sent++ {
		if time.Now().After(give) {
			return fmt.Errorf("%d answers from %v", answers, conn.RemoteAddr())
		}
		if _, err := conn.Write([]byte(strconv.Itoa(sent))); err != nil {
			open-- // what was sent before was refused, and this not sent
		} else {
			open++
			if answered, _ := read(100 * time.Millisecond); answered {
				answers++
				continue
			}
		}
		<-time.After(10 * time.Millisecond) // nobody may listen yet
	}
	for open > 0 {
		if answered, refused := read(5 * time.Second); !answered && !refused {
			break // the rest is lost
		}
	}
	fmt.Println(count, "answers")
	return nil
}
