package xdploader

import (
	"errors"
	"io/fs"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// errnos has what libxdp answers where Holdfast's libraries have words. The
// first that fits counts.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{libxdp.ErrFull, unix.E2BIG},
	{xdp.ErrConflict, unix.EBUSY},
	{xdp.ErrPort, unix.EEXIST},
	{xdp.ErrNotSupported, unix.EOPNOTSUPP},
	{xdp.ErrMTU, unix.ERANGE},
	{xdp.ErrPermission, unix.EPERM},
	{xdp.ErrNotFound, unix.ENOENT},
	{xdp.ErrNotAttached, unix.ENOENT},
	{xdp.ErrInvalid, unix.EINVAL},
	{libxdp.ErrLockTimeout, unix.ETIMEDOUT},
	{object.ErrPermission, unix.EPERM},
	{object.ErrNoProgram, unix.ENOENT},
	{object.ErrNotSupported, unix.EOPNOTSUPP},
	{object.ErrFormat, unix.EINVAL},
	{object.ErrRunConfig, unix.EINVAL},
	{object.ErrLicense, unix.EINVAL},
	{fs.ErrNotExist, unix.ENOENT},
}

// errno is the number that libxdp would answer with.
func errno(err error) syscall.Errno {
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		return no
	}
	return unix.EINVAL
}

// exitCode is what the shell makes of an exit with the negative errno.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	return int(uint8(-int(errno(err))))
}

// words are the C library's of an errno, which begin with a capital.
func words(no syscall.Errno) string {
	s := no.Error()
	return strings.ToUpper(s[:1]) + s[1:]
}
