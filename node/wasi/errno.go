package wasi

// An errno is one of preview1's error numbers (typenames.witx, "errno").
type errno = uint32

const (
	success        errno = 0
	errAgain       errno = 6
	errBadf        errno = 8
	errBusy        errno = 10
	errExist       errno = 20
	errFault       errno = 21
	errFbig        errno = 22
	errIlseq       errno = 25
	errIntr        errno = 27
	errInval       errno = 28
	errIO          errno = 29
	errIsdir       errno = 31
	errLoop        errno = 32
	errMfile       errno = 33
	errMlink       errno = 34
	errNametoolong errno = 37
	errNoent       errno = 44
	errNospc       errno = 51
	errNosys       errno = 52
	errNotdir      errno = 54
	errNotempty    errno = 55
	errNotsock     errno = 57
	errNotsup      errno = 58
	errPerm        errno = 63
	errSpipe       errno = 70
	errNotcapable  errno = 76
)
