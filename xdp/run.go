package xdp

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
)

// Run is what the kernel has counted of one program while it was told to.
type Run struct {
	// Count is how often the program ran, and Time how long that took together,
	// on all processors.
	Count uint64        `json:"run_count"`
	Time  time.Duration `json:"run_time_ns"`
}

// CountRuns has the kernel count how often each program on the machine runs, and
// how long (kernel.bpf_stats_enabled), until what it returns is closed, or the
// process ends, whichever way. Others may have it count as well. It costs each run
// of each program two readings of the clock. Since Linux 5.8.
//
// Errors: ErrPermission without CAP_SYS_ADMIN.
func CountRuns() (io.Closer, error) {
	fd, err := kernel.EnableRunStats()
	if err == nil {
		return fd, nil
	}
	e := &Error{Op: "count runs of programs", Err: ErrUnexpected, Detail: err.Error()}
	errors.As(err, &e.Errno)
	if errors.Is(err, unix.EPERM) {
		e.Err, e.Hint = ErrPermission, "run as root: it needs CAP_SYS_ADMIN"
	}
	return nil, e
}

// ReadRun reads what was counted of the program of that id since it was loaded,
// in all the time that anybody had the kernel count. What the kernel counts is
// that it calls a program itself: of the dispatcher of a live chain, with all that
// its members do, and not of the extensions which these are.
//
// Errors: ErrNotFound, ErrPermission without CAP_SYS_ADMIN.
func ReadRun(programID uint32) (Run, error) {
	fail := func(err error) (Run, error) {
		e := &Error{Op: "read runs", Hook: fmt.Sprintf("program %d", programID), Err: ErrUnexpected, Detail: err.Error()}
		errors.As(err, &e.Errno)
		switch {
		case errors.Is(err, unix.ENOENT):
			e.Err, e.Detail, e.Hint = ErrNotFound, "it is not loaded", "look at what is attached now"
		case errors.Is(err, unix.EPERM):
			e.Err, e.Detail, e.Hint = ErrPermission, "it may not be looked into", "run as root: it needs CAP_SYS_ADMIN"
		}
		return Run{}, e
	}
	fd, err := kernel.ProgramByID(programID)
	if err != nil {
		return fail(err)
	}
	defer fd.Close()
	info, err := kernel.ReadProgram(fd)
	if err != nil {
		return fail(err)
	}
	return Run{Count: info.RunCount, Time: time.Duration(info.RunTime)}, nil
}
