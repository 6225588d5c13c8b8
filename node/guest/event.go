package guest

// Limits of the host interface, enforced by the node.
const (
	// MaxPayload is the size limit of a payload or a reply, in bytes.
	MaxPayload = 1 << 20

	// MaxSends is how many messages one event may send.
	MaxSends = 64

	// MaxReading is the size limit of a reading of a host interface, in bytes.
	MaxReading = 64 << 10

	// MaxTimers is how many timers of a worker may be armed at a time.
	MaxTimers = 1024
)

// A Kind says why the handler was called.
type Kind uint8

const (
	// KindCall is a message whose sender waits for the reply.
	KindCall Kind = 0

	// KindSend is a one-way message.
	KindSend Kind = 1

	// KindTimer is the expiry of a timer; Event.ID is the timer's id and there
	// is no payload.
	KindTimer Kind = 2
)

// String names the kind for logs.
func (k Kind) String() string {
	switch k {
	case KindCall:
		return "call"
	case KindSend:
		return "send"
	case KindTimer:
		return "timer"
	}
	return "unknown"
}

// A Level is the importance of a log line.
type Level int32

const (
	LevelDebug Level = 0
	LevelInfo  Level = 1
	LevelWarn  Level = 2
	LevelError Level = 3
)
