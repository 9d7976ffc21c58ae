package xdp

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// What went wrong, for errors.Is. Each is wrapped by an [*Error].
var (
	// ErrConflict: an expectation does not hold, or somebody else holds the
	// hook. [Error.Rival] says who.
	ErrConflict = errors.New("conflict")
	// ErrPermission: the kernel does not let the caller do this.
	ErrPermission = errors.New("not permitted")
	// ErrNotSupported: this kernel, or the interface's driver, can't do it.
	ErrNotSupported = errors.New("not supported")
	// ErrNotFound: there is no such interface, namespace or pin.
	ErrNotFound = errors.New("not found")
	// ErrNotAttached: there is nothing to detach.
	ErrNotAttached = errors.New("not attached")
	// ErrGone: the link is defunct. Its interface is gone, or somebody
	// detached it by force.
	ErrGone = errors.New("gone")
	// ErrMTU: packets of this MTU don't fit into what a program without
	// fragments can read. [Error.MaxMTU] says which would.
	ErrMTU = errors.New("MTU too large")
	// ErrAttachType: a link keeps the expected attach type of the program
	// that it was made with, and the new program has another.
	ErrAttachType = errors.New("attach type differs")
	// ErrDeviceBound: the program was loaded for another device, or for one
	// where it can't run in this mode.
	ErrDeviceBound = errors.New("bound to another device")
	// ErrPort: the interface is the port of a bridge, bond or other master
	// that has a program itself, and the kernel allows only one of the two.
	ErrPort = errors.New("master has a program")
	// ErrExists: the path of a pin is taken.
	ErrExists = errors.New("already exists")
	// ErrInvalid: what was asked for makes no sense.
	ErrInvalid = errors.New("invalid")
	// ErrUnexpected: the kernel answered what this package knows no meaning
	// of. The errno and its own words are all there is.
	ErrUnexpected = errors.New("failed")
)

// Error is what every function of this package returns.
type Error struct {
	// Op is what was tried: "attach", "replace", ...
	Op string
	// Hook is where: an interface, a pin, a namespace.
	Hook string
	// Err is one of the package's sentinels.
	Err error
	// Detail says more than the sentinel, in words.
	Detail string
	// Hint is what to do about it.
	Hint string
	// Rival is what is in the way, in a conflict; nil where it can't be told
	// or has gone meanwhile.
	Rival *Attachment
	// MaxMTU, in bytes, would do, in an ErrMTU; 0 where it is not known.
	MaxMTU int
	// Errno is the kernel's answer, 0 where the kernel was not asked.
	Errno syscall.Errno
	// Extack is the kernel's own sentence, where it gave one.
	Extack string
}

// Error is one sentence, from the outside in, that ends with what to do.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Hook != "" {
		b.WriteString(" " + e.Hook)
	}
	fmt.Fprintf(&b, ": %s", e.Err)
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.Rival != nil {
		b.WriteString(": " + e.Rival.String())
	}
	switch {
	case e.Extack != "":
		fmt.Fprintf(&b, " (kernel: %s, %q)", e.Errno, e.Extack)
	case e.Errno != 0:
		fmt.Fprintf(&b, " (kernel: %s)", e.Errno)
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap returns the sentinel and the errno.
func (e *Error) Unwrap() []error {
	if e.Errno == 0 {
		return []error{e.Err}
	}
	return []error{e.Err, e.Errno}
}
