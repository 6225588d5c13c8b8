package wasi

// An errno is one of preview1's error numbers (typenames.witx, "errno").
type errno = uint32

const (
	success       errno = 0
	errBadf       errno = 8
	errFault      errno = 21
	errInval      errno = 28
	errNosys      errno = 52
	errNotdir     errno = 54
	errNotsock    errno = 57
	errNotsup     errno = 58
	errSpipe      errno = 70
	errNotcapable errno = 76
)
