// Package crash kills a process at a chosen kernel call, so that a test can
// ask of every moment of an operation: is the state that a SIGKILL leaves here
// one that the next run can live with?
//
// It works on any binary and asks nothing of it: a tracer (ptrace) counts the
// calls that change state outside the process (bpf, netlink requests, pins and
// directories, locks, namespaces, closes of bpf descriptors, what is written
// to standard output) and kills the whole process before or after the n-th of
// them. A call that is killed before it does not happen; a call that is killed
// after it has returned to nobody.
//
// [Trace] lists the points of a command, [Kill] ends it at one of them, and
// [Sweep] does so at all of them and has the invariants checked each time:
//
//	crash.Sweep{
//		Setup: func(t *testing.T) crash.Command {
//			dir := kerneltest.BPFFS(t) // the state that the operation starts from
//			return crash.Command{
//				Path: "/proc/self/exe", // the test binary, whose TestMain knows "pin"
//				Args: []string{dir},
//				Env:  append(os.Environ(), kerneltest.CommandEnv("pin")),
//			}
//		},
//		Check: func(t *testing.T, run crash.Run) {
//			// what must be true wherever it was killed
//		},
//	}.Run(t)
//
// The package needs root, Linux 5.6 and amd64 or arm64, and is for tests only.
package crash

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// Command is a process to trace.
type Command struct {
	// Path is the binary. It is not looked up in PATH.
	Path string
	// Args are the arguments after the name of the program.
	Args []string
	// Env is the whole environment; nil stands for that of this process.
	Env []string
	// Dir is the working directory; empty stands for that of this process.
	Dir string
	// Stdin may be nil, which stands for /dev/null.
	Stdin *os.File
	// Files are inherited as the descriptors 3 and up.
	Files []*os.File
	// Alone promises that the command starts no process; it is an error if it
	// does. Such a run takes little longer than one that nobody traces, where
	// others take twice or three times as long: a seccomp filter then picks the
	// calls that stop. Children would inherit the filter and could never be rid
	// of it, and with nobody to trace them the picked calls would fail.
	Alone bool
	// Counts says which calls are points. Nil stands for [Changes].
	Counts func(Point) bool
	// Timeout bounds the run; 0 stands for one minute.
	Timeout time.Duration
}

// Point is one kernel call that counts.
type Point struct {
	// N is the position in the run, from 1.
	N int
	// Call is the system call: "bpf", "unlinkat", "sendto".
	Call string
	// Op is what is asked of a call that does many things: "BPF_LINK_CREATE",
	// "RTM_SETLINK", "LOCK_EX". Empty where the call's name says it all.
	Op string
	// On is what the call is about: a path, a kind of descriptor, the text
	// written.
	On string
	// Query says that the call changes nothing outside the process.
	Query bool
	// Ret is what the call returned, negative for an errno. It is 0 for a
	// call that did not return.
	Ret int64
}

// String gives the point as one line for people: "7 bpf BPF_OBJ_PIN /tmp/x".
func (p Point) String() string {
	words := []string{p.Call}
	for _, w := range []string{p.Op, p.On} {
		if w != "" {
			words = append(words, w)
		}
	}
	s := fmt.Sprintf("%d %s", p.N, strings.Join(words, " "))
	if p.Ret < 0 {
		s += fmt.Sprintf(" = %v", syscall.Errno(-p.Ret))
	}
	return s
}

// Changes counts every call that may change state outside the process. It is
// the default of [Command].Counts.
func Changes(p Point) bool { return !p.Query }

// Side is the moment at a point.
type Side int

const (
	// Before is when the call has been made and has had no effect yet.
	Before Side = iota
	// After is when the call has had its effect and has not returned to the
	// program yet. A process cannot be killed after exit_group: there it is
	// left to end by itself, and the run is an undisturbed one.
	After
)

func (s Side) String() string {
	if s == After {
		return "after"
	}
	return "before"
}

// Run is what a traced process did.
type Run struct {
	// Points are the calls that counted, in order, up to the end or the kill.
	Points []Point
	// Reached says that the point asked for came, so that the process was
	// killed there. It did not if the process ended before.
	Reached bool
	// Side is the side asked for; without meaning for Trace.
	Side Side
	// Status is how the process ended.
	Status syscall.WaitStatus
	// Stdout and Stderr are what was written until the process had ended.
	Stdout, Stderr string
	// Children are the processes that the command had started, in order. They
	// run untraced and may outlive it: see EndChildren.
	Children []Child
}

// Last is the point where the run was killed, or the last one that it made.
func (r Run) Last() Point {
	if len(r.Points) == 0 {
		return Point{}
	}
	return r.Points[len(r.Points)-1]
}

// Trace runs the command to its end and returns every point of it. An error
// means that it could not be run or traced; how it ended is in Run.Status.
func Trace(c Command) (Run, error) {
	return trace(c, 0, Before)
}

// Kill runs the command and kills it at its n-th point, counted from 1. If the
// command ends before that, Run.Reached is false. The kernel lets go of links
// and programs a little after the process is gone: wait for that, do not
// expect it at once.
func Kill(c Command, n int, side Side) (Run, error) {
	if n < 1 {
		return Run{}, fmt.Errorf("kill at point %d: points are counted from 1", n)
	}
	return trace(c, n, side)
}

// String tells how the process ended and what it had written.
func (r Run) String() string {
	end := fmt.Sprintf("ended by itself with exit code %d", r.Status.ExitStatus())
	switch {
	case r.Reached && r.Status.Signaled():
		end = fmt.Sprintf("killed %v", r.Side)
	case r.Status.Signaled():
		end = fmt.Sprintf("ended by the signal %v", r.Status.Signal())
	}
	return fmt.Sprintf("%s, last point: %v\nstdout: %s\nstderr: %s", end, r.Last(), r.Stdout, r.Stderr)
}
