package e2e

import (
	"fmt"
	"net"
	"os"
	"strconv"
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
		buf := make([]byte, 2048)
		for answers, sent := 0, 0; answers < count && sent < count+100; sent++ {
			// Nobody may listen yet, of which the next write or read tells.
			conn.Write([]byte(strconv.Itoa(sent)))
			if args[0] == "try" {
				answers++
				continue
			}
			conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, err := conn.Read(buf)
			if err == nil && string(buf[:n]) == strconv.Itoa(sent) {
				answers++
			} else {
				<-time.After(10 * time.Millisecond)
			}
			if answers == count {
				fmt.Println(answers, "answers")
				return nil
			}
		}
		if args[0] == "try" {
			return nil
		}
		return fmt.Errorf("too few answers from %s", args[1])
	}
	return fmt.Errorf("usage: udp echo ADDR | udp ping|try ADDR COUNT")
}
