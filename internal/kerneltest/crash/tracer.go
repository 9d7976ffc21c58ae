package crash

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/procfs"
)

// tracer runs one command under ptrace.
//
// It works inside the test process, on the thread of the caller: the kernel
// takes ptrace requests only from the thread that started the tracee, and a
// command started there is in the namespaces that the caller has entered,
// which a separate tracer process would have to be told of. What makes this
// safe beside everything else a test process does is the command's own process
// group: wait4 on that group sees the tracees and can never take the exit
// status of a process that another part of the test is waiting for.
//
// Tracer and command share one CPU, where a stop costs two context switches and
// no wakeup of another CPU: a run takes a quarter of the time.
type tracer struct {
	cmd   Command
	pid   int // of the command, and of its process group
	pidfd int
	want  int
	side  Side

	threads map[int]*thread
	killed  bool
	run     Run

	cpus unix.CPUSet // where the children of the command may run
}

// thread is a thread of the command.
type thread struct {
	inside  int // the point of the call that it is in, or 0
	restart int // the point of a call that a signal interrupted, or 0
	nr      uint64
}

func trace(c Command, want int, side Side) (Run, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	if c.Counts == nil {
		c.Counts = Changes
	}
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	t := &tracer{cmd: c, want: want, side: side, threads: map[int]*thread{}, run: Run{Side: side}}
	if err := unix.SchedGetaffinity(0, &t.cpus); err != nil {
		return Run{}, fmt.Errorf("read the CPU affinity: %w", err)
	}
	if err := stayOnThisCPU(); err != nil {
		return Run{}, fmt.Errorf("set the CPU affinity: %w", err)
	}
	defer unix.SchedSetaffinity(0, &t.cpus)
	if err := t.trace(); err != nil {
		t.run.EndChildren()
		return Run{}, fmt.Errorf("trace %s: %w", c.Path, err)
	}
	return t.run, nil
}

func (t *tracer) trace() error {
	// Memory, not pipes: a child that outlives the command would keep a pipe
	// open, and nobody has to read along while the command is stopped.
	stdout, err := memfd("stdout")
	if err != nil {
		return err
	}
	defer stdout.Close()
	stderr, err := memfd("stderr")
	if err != nil {
		return err
	}
	defer stderr.Close()

	if err := t.start(stdout, stderr); err != nil {
		return err
	}
	defer unix.Close(t.pidfd)

	timedOut := make(chan struct{})
	timer := time.AfterFunc(t.cmd.Timeout, func() {
		unix.PidfdSendSignal(t.pidfd, unix.SIGKILL, nil, 0)
		close(timedOut)
	})
	err = t.loop()
	if !timer.Stop() {
		<-timedOut
		err = errors.Join(err, fmt.Errorf("not at its end after %v, last point: %v", t.cmd.Timeout, t.run.Last()))
	}
	if err != nil {
		return err
	}
	if t.run.Stdout, err = contents(stdout); err != nil {
		return err
	}
	t.run.Stderr, err = contents(stderr)
	return err
}

// start starts the command and leaves it stopped behind its execve.
func (t *tracer) start(stdout, stderr *os.File) error {
	stdin := t.cmd.Stdin
	if stdin == nil {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer null.Close()
		stdin = null
	}
	env := t.cmd.Env
	if env == nil {
		env = os.Environ()
	}
	var files []uintptr
	for _, f := range append([]*os.File{stdin, stdout, stderr}, t.cmd.Files...) {
		files = append(files, f.Fd())
	}
	pid, err := syscall.ForkExec(t.cmd.Path, append([]string{t.cmd.Path}, t.cmd.Args...), &syscall.ProcAttr{
		Dir:   t.cmd.Dir,
		Env:   env,
		Files: files,
		Sys:   &syscall.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	t.pid = pid
	t.threads[pid] = &thread{}

	err = func() error {
		var ws unix.WaitStatus
		if err := wait4(pid, &ws); err != nil {
			return fmt.Errorf("wait for its start: %w", err)
		}
		if !ws.Stopped() {
			return fmt.Errorf("ended before it could be traced: %v", describe(ws))
		}
		const options = unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACEEXEC |
			unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACESECCOMP
		if err := unix.PtraceSetOptions(pid, options); err != nil {
			return fmt.Errorf("set ptrace options: %w", err)
		}
		if t.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			return fmt.Errorf("open a pidfd: %w", err)
		}
		if t.cmd.Alone {
			if err := t.installFilter(); err != nil {
				unix.Close(t.pidfd)
				return fmt.Errorf("install a filter of its calls: %w", err)
			}
		}
		return nil
	}()
	if err != nil {
		unix.Kill(pid, unix.SIGKILL)
		wait4(pid, nil)
	}
	return err
}

// loop handles stops until the command is gone and nothing is traced any more.
func (t *tracer) loop() error {
	err := t.resume(t.pid, 0)
	for {
		if err != nil && !t.killed {
			t.kill()
		}
		events, werr := t.wait()
		if errors.Is(werr, unix.ECHILD) {
			return err
		}
		if werr != nil {
			return errors.Join(err, fmt.Errorf("wait: %w", werr))
		}
		for _, e := range events {
			if e.ws.Exited() || e.ws.Signaled() {
				delete(t.threads, e.tid)
				if e.tid == t.pid {
					t.run.Status = syscall.WaitStatus(e.ws)
					t.reachedExit()
				}
				continue
			}
			if serr := t.stopped(e.tid, e.ws); serr != nil && !gone(serr) {
				err = errors.Join(err, serr)
			}
		}
	}
}

// event is what happened to a thread.
type event struct {
	tid int
	ws  unix.WaitStatus
}

// wait waits until something has happened, and returns all that has. One at a
// time would not be fair: the kernel tells of the first thread in its list that
// has stopped, and two threads that do nothing but wake each other, as goroutines
// do that yield until a third thread has run, would be told of over and over
// while that one waits to be resumed.
func (t *tracer) wait() ([]event, error) {
	var all []event
	options := unix.WALL
	for {
		var e event
		var err error
		e.tid, err = unix.Wait4(-t.pid, &e.ws, options, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case len(all) > 0 && (err != nil || e.tid == 0):
			return all, nil // an error comes again, when there is nothing else
		case err != nil:
			return nil, err
		}
		all = append(all, e)
		options |= unix.WNOHANG
	}
}

func (t *tracer) stopped(tid int, ws unix.WaitStatus) error {
	th := t.threads[tid]
	if th == nil {
		return t.appeared(tid)
	}
	sig := ws.StopSignal()
	switch {
	case sig == unix.SIGTRAP|0x80, sig == unix.SIGTRAP && ws.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
		return t.syscallStop(tid, th)
	case sig == unix.SIGTRAP && ws.TrapCause() == unix.PTRACE_EVENT_EXEC:
		// All other threads are gone, and the one that called execve has the
		// id of the first one now.
		former, err := unix.PtraceGetEventMsg(tid)
		if err != nil {
			return err
		}
		th = t.threads[int(former)]
		if th == nil {
			return fmt.Errorf("execve by thread %d, which is not known", former)
		}
		t.threads = map[int]*thread{tid: th}
		return t.resume(tid, 0)
	case sig == unix.SIGTRAP && ws.TrapCause() > 0:
		// A new thread or process: it reports itself by its first stop.
		return t.resume(tid, 0)
	default:
		return t.resume(tid, sig)
	}
}

// appeared handles the first stop of a new thread or process, which the kernel
// brings about by a SIGSTOP of its own.
func (t *tracer) appeared(tid int) error {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", t.pid, tid)); err == nil {
		t.threads[tid] = &thread{}
		return t.resume(tid, 0)
	}
	child, err := newChild(tid)
	if err != nil {
		return err
	}
	t.run.Children = append(t.run.Children, child)
	if t.cmd.Alone {
		child.kill()
		return errors.New("it starts a process, and was said to be alone")
	}
	if err := unix.SchedSetaffinity(tid, &t.cpus); err != nil {
		return fmt.Errorf("set the CPU affinity of child %d: %w", tid, err)
	}
	return unix.PtraceDetach(tid)
}

// syscallStop handles the stop at the entry or the exit of a call.
func (t *tracer) syscallStop(tid int, th *thread) error {
	if t.killed {
		return t.resume(tid, 0)
	}
	var info syscallStopInfo
	err := t.insist(tid, func() (err error) {
		info, err = syscallInfo(tid)
		return err
	})
	if err != nil {
		return err
	}
	if info.Op == unix.PTRACE_SYSCALL_INFO_EXIT {
		return t.leave(tid, th, int64(info.Data[0]))
	}
	nr, args := info.Data[0], [6]uint64(info.Data[1:7])
	return t.enter(tid, th, nr, args)
}

func (t *tracer) enter(tid int, th *thread, nr uint64, args [6]uint64) error {
	if th.restart != 0 && th.nr == nr {
		th.inside, th.restart = th.restart, 0
		return t.resume(tid, 0)
	}
	c, known := calls[nr]
	if !known {
		return t.resume(tid, 0)
	}
	p, ok := c.decode(caller{tid: tid, pid: t.pid, pidfd: t.pidfd}, args)
	p.Call = c.name
	if !ok || !t.cmd.Counts(p) {
		return t.resume(tid, 0)
	}
	p.N = len(t.run.Points) + 1
	t.run.Points = append(t.run.Points, p)
	th.inside, th.nr, th.restart = p.N, nr, 0
	if p.N == t.want && t.side == Before {
		t.run.Reached = true
		// A killed thread does not enter the call that it is stopped at; that
		// the call has no number any more makes sure of it.
		if err := cancelCall(tid); err != nil {
			return fmt.Errorf("cancel %v: %w", p, err)
		}
		t.kill()
		return nil
	}
	return t.resume(tid, 0)
}

func (t *tracer) leave(tid int, th *thread, ret int64) error {
	n := th.inside
	th.inside = 0
	if n == 0 {
		return t.resume(tid, 0)
	}
	if interrupted(ret) {
		// The kernel makes the call again once the signal is handled. It is
		// the same point, and it has not happened yet.
		th.restart = n
		return t.resume(tid, 0)
	}
	t.run.Points[n-1].Ret = ret
	if n == t.want && t.side == After {
		t.run.Reached = true
		t.kill()
		return nil
	}
	return t.resume(tid, 0)
}

// reachedExit accounts for exit_group, the one call that does not return.
func (t *tracer) reachedExit() {
	last := t.run.Last()
	if !t.killed && last.N == t.want && last.Call == "exit_group" {
		t.run.Reached = true
	}
}

func (t *tracer) kill() {
	t.killed = true
	unix.PidfdSendSignal(t.pidfd, unix.SIGKILL, nil, 0)
}

// resume lets a stopped thread run to its next stop: at any call, or, where a
// filter picks the calls, at the exit of the one that it is in or at the next
// picked one.
func (t *tracer) resume(tid int, sig unix.Signal) error {
	run := unix.PtraceSyscall
	if th := t.threads[tid]; t.cmd.Alone && (th == nil || th.inside == 0) {
		run = unix.PtraceCont
	}
	if err := t.insist(tid, func() error { return run(tid, int(sig)) }); err != nil {
		return fmt.Errorf("resume thread %d: %w", tid, err)
	}
	return nil
}

// insist makes a ptrace request of a stopped thread again that the kernel says is
// not there while it is: Linux 5.10 does so now and then, and a thread that nobody
// resumes would wait forever.
func (t *tracer) insist(tid int, request func() error) error {
	for range 1000 {
		err := request()
		if !gone(err) || t.killed {
			return err
		}
		// One that has ended is there still, for its end to be waited for.
		if p, readErr := procfs.ReadProcess(tid); readErr != nil || !p.Alive() {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return request()
}

// stayOnThisCPU keeps the thread, and what it starts, on the CPU it is on.
func stayOnThisCPU() error {
	var cpu uint32
	if _, _, errno := unix.RawSyscall(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0); errno != 0 {
		return errno
	}
	var one unix.CPUSet
	one.Set(int(cpu))
	return unix.SchedSetaffinity(0, &one)
}

// gone says that the request failed because the tracee was killed meanwhile.
func gone(err error) bool { return errors.Is(err, unix.ESRCH) }

// interrupted tells the kernel's own return values for calls that it will
// restart (ERESTARTSYS and its kin), which only a tracer gets to see.
func interrupted(ret int64) bool { return ret <= -512 && ret >= -516 }

// syscallStopInfo is struct ptrace_syscall_info (Linux 5.3). Data is the
// call's number and arguments at its entry, and its result at its exit.
type syscallStopInfo struct {
	Op   uint8
	_    [3]uint8
	Arch uint32
	IP   uint64
	SP   uint64
	Data [8]uint64
}

func syscallInfo(tid int) (syscallStopInfo, error) {
	var info syscallStopInfo
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid),
		unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return info, fmt.Errorf("read the call of thread %d: %w", tid, errno)
	}
	return info, nil
}

func wait4(pid int, ws *unix.WaitStatus) error {
	for {
		if _, err := unix.Wait4(pid, ws, unix.WALL, nil); err != unix.EINTR {
			return err
		}
	}
}

func describe(ws unix.WaitStatus) string {
	if ws.Signaled() {
		return ws.Signal().String()
	}
	return "exit code " + strconv.Itoa(ws.ExitStatus())
}

func memfd(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory for %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func contents(f *os.File) (string, error) {
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	b := make([]byte, fi.Size())
	n, err := f.ReadAt(b, 0)
	if n < len(b) {
		return "", fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return string(b), nil
}
