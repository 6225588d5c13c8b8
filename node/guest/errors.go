package guest

import "strconv"

// An Errno is a result code of the host interface other than zero. Values are
// comparable: use errors.Is or ==.
type Errno int32

const (
	// ErrTooLarge means a payload above MaxPayload, or a reading above MaxReading
	// or larger than the buffer for it.
	ErrTooLarge Errno = 1

	// ErrNotInCall means a reply to an event that is not a call, or no longer
	// the current one.
	ErrNotInCall Errno = 2

	// ErrTooMany means that the worker's queue of outgoing messages or its set
	// of timers is full. Nothing was queued or armed.
	ErrTooMany Errno = 3

	// ErrBadPointer means memory outside the worker's own. This package passes
	// none: seeing it means the worker's memory is damaged.
	ErrBadPointer Errno = 4

	// ErrBadArgument means a name, a time or an id that the host refuses.
	ErrBadArgument Errno = 5

	// ErrUndeclared means an interface that the app's manifest does not name.
	ErrUndeclared Errno = 6

	// ErrNoReading means that an interface cannot be read now: nobody that has it
	// can be reached, or it failed there. The worker's log says why.
	ErrNoReading Errno = 7
)

func (e Errno) Error() string {
	switch e {
	case ErrTooLarge:
		return "meshnode: payload too large"
	case ErrNotInCall:
		return "meshnode: not in a call"
	case ErrTooMany:
		return "meshnode: too many"
	case ErrBadPointer:
		return "meshnode: bad pointer"
	case ErrBadArgument:
		return "meshnode: bad argument"
	case ErrUndeclared:
		return "meshnode: interface not in the manifest"
	case ErrNoReading:
		return "meshnode: interface cannot be read now"
	}
	return "meshnode: result " + strconv.Itoa(int(e))
}
