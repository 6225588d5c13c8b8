package control

import (
	"context"
	"errors"
	"net/http"
)

// A Code says what kind of failure an Error is. Codes are part of the API.
type Code string

const (
	CodeInvalid     Code = "invalid"     // the request makes no sense; nothing was tried
	CodeNotFound    Code = "not-found"   // no such node or worker
	CodeConflict    Code = "conflict"    // makes sense, but not in the present state
	CodeDenied      Code = "denied"      // not permitted
	CodeFailed      Code = "failed"      // tried and failed
	CodeTimeout     Code = "timeout"     // not done in the time given; may still happen
	CodeUnreachable Code = "unreachable" // no daemon, or no way to the node
	CodeTooLarge    Code = "too-large"   // beyond a limit, which Message names
	CodeMoved       Code = "moved"       // the worker's home is another node; between nodes only
)

// codes holds, for each code, its number in session frames (never reused),
// its HTTP status and the exit code of a command that ends with it.
var codes = map[Code]struct {
	num    uint8
	status int
	exit   int
}{
	CodeInvalid:     {1, http.StatusBadRequest, ExitUsage},
	CodeNotFound:    {2, http.StatusNotFound, ExitNotFound},
	CodeConflict:    {3, http.StatusConflict, ExitFailed},
	CodeDenied:      {4, http.StatusForbidden, ExitDenied},
	CodeFailed:      {5, http.StatusInternalServerError, ExitFailed},
	CodeTimeout:     {6, http.StatusGatewayTimeout, ExitTimeout},
	CodeUnreachable: {7, http.StatusBadGateway, ExitUnreachable},
	CodeTooLarge:    {8, http.StatusRequestEntityTooLarge, ExitUsage},
	CodeMoved:       {9, http.StatusMisdirectedRequest, ExitUnreachable},
}

// Exit codes of the meshnode command.
const (
	ExitDone        = 0
	ExitFailed      = 1 // tried and failed
	ExitUsage       = 2 // usage or bad input: nothing was tried
	ExitPending     = 3 // only with --exit-code: done, and something is to be done or not kept
	ExitNotFound    = 4
	ExitUnreachable = 5 // daemon or mesh
	ExitTimeout     = 6
	ExitDenied      = 7
)

// An Error is what a request ends with when it does not succeed. Message says
// what and why; Hint, what to do next.
type Error struct {
	Meta
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	// Home is the id of the node to ask instead, with CodeMoved.
	Home string `json:"home,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// Is reports whether target is an *Error of the same code, so that
// errors.Is(err, &Error{Code: CodeNotFound}) works.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == ""
}

// HTTPStatus is the status an Error travels with.
func (e *Error) HTTPStatus() int {
	if c, ok := codes[e.Code]; ok {
		return c.status
	}
	return http.StatusInternalServerError
}

// ExitCode is what a command that ends with err exits with.
func ExitCode(err error) int {
	if err == nil {
		return ExitDone
	}
	if c, ok := codes[AsError(err).Code]; ok {
		return c.exit
	}
	return ExitFailed
}

// AsError turns any error into an *Error: the one err wraps, with err's text
// kept, or CodeTimeout for an exceeded deadline and CodeFailed for the rest.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		if e.Message == err.Error() {
			return e
		}
		c := *e
		c.Message = err.Error()
		return &c
	}
	code := CodeFailed
	if errors.Is(err, context.DeadlineExceeded) {
		code = CodeTimeout
	}
	return &Error{Code: code, Message: err.Error()}
}
