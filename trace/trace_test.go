package trace

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestWhatTheKernelRefusesIsToldInWords(t *testing.T) {
	verifier := func(errno error, log ...string) error {
		return fmt.Errorf("program begin: %w", &ebpf.VerifierError{Cause: errno, Log: log})
	}
	for _, c := range []struct {
		err   error
		is    error
		words string
	}{
		{unix.EPERM, xdp.ErrPermission, "run as root"},
		{verifier(unix.EPERM), xdp.ErrPermission, "run as root"},
		{verifier(unix.EACCES, "R1 invalid mem access 'scalar'"), ErrUntraceable, "R1 invalid mem access"},
		{verifier(unix.EPERM, "R0 leaks addr as return value"), ErrUntraceable, "R0 leaks addr"},
		{verifier(unix.EINVAL), ErrUntraceable, "has BTF"},
		{unix.ENOENT, xdp.ErrNotFound, "program 7 is not loaded"},
		{unix.EBUSY, ErrUntraceable, "an extension (freplace) has the place"},
		{errNoTypes, ErrUntraceable, "without type information"},
		{unix.ENOMEM, xdp.ErrUnexpected, "try again"},
	} {
		got := explain(Options{Program: 7}, c.err)
		if !errors.Is(got, c.is) || !strings.Contains(got.Error(), c.words) {
			t.Errorf("%v: %v, want %v with %q", c.err, got, c.is, c.words)
		}
		if !errors.Is(c.is, xdp.ErrPermission) && strings.Contains(got.Error(), "run as root") {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
