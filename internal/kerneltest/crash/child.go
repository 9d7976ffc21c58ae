package crash

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Child is a process that the command had started.
type Child struct {
	// PID is its process id. It may have ended, and the number be another's.
	PID   int
	pidfd int
}

// newChild takes a hold of a process by a descriptor, which never comes to
// mean another process.
func newChild(pid int) (Child, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return Child{}, fmt.Errorf("open child %d: %w", pid, err)
	}
	return Child{PID: pid, pidfd: fd}, nil
}

// Running says whether the process has not ended yet.
func (c Child) Running() bool { return !c.wait(0) }

// wait waits up to the given milliseconds (-1: without end) for the process to
// have ended; whether somebody has reaped it does not matter.
func (c Child) wait(ms int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}, ms)
		if err == unix.EINTR {
			continue
		}
		return err == nil && n == 1
	}
}

func (c Child) kill() { unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0) }

// EndChildren kills the processes that the command had started, waits for
// their end and forgets them. It has to be called after every run; Sweep does.
func (r *Run) EndChildren() {
	for _, c := range r.Children {
		c.kill()
		c.wait(-1)
		unix.Close(c.pidfd)
	}
	r.Children = nil
}
