package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// peakMemory runs the command and returns the most memory that it had resident,
// in KiB. The kernel's resource usage does not tell: it counts what the process
// was before it executed the command, a copy of this one. So the command is
// traced, and its own high-water mark read when it is about to exit.
func peakMemory(cmd *exec.Cmd) (int, error) {
	runtime.LockOSThread() // the kernel takes ptrace requests from one thread
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &unix.SysProcAttr{Ptrace: true, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	defer func() { _ = cmd.Process.Release() }() // reaped here already

	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil { // after execve
		return 0, err
	}
	const exitKill = 0x100000 // PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACEEXIT|unix.PTRACE_O_TRACECLONE|exitKill); err != nil {
		return 0, err
	}
	if err := unix.PtraceCont(pid, 0); err != nil {
		return 0, err
	}
	peak := 0
	for {
		tid, err := unix.Wait4(-pid, &ws, unix.WALL, nil)
		if err != nil {
			return 0, err
		}
		switch {
		case tid == pid && (ws.Exited() || ws.Signaled()):
			if ws.ExitStatus() != 0 {
				return 0, fmt.Errorf("%s: exit status %d", cmd, ws.ExitStatus())
			}
			return peak, nil
		case !ws.Stopped():
			continue
		}
		signal := int(ws.StopSignal())
		switch {
		case ws.TrapCause() == unix.PTRACE_EVENT_EXIT:
			peak = max(peak, highWater(tid))
			signal = 0
		case ws.StopSignal() == unix.SIGTRAP, ws.StopSignal() == unix.SIGSTOP:
			signal = 0 // a new thread, or its birth
		}
		// A thread may be killed meanwhile, when the process exits.
		if err := unix.PtraceCont(tid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return 0, err
		}
	}
}

// highWater reads VmHWM, in KiB; it is the same for all threads.
func highWater(tid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0
	}
	_, line, found := bytes.Cut(b, []byte("VmHWM:"))
	if !found {
		return 0
	}
	n, err := strconv.Atoi(string(bytes.Fields(line)[0]))
	if err != nil {
		return 0
	}
	return n
}
