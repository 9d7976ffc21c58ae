package crash

import (
	"fmt"
	"maps"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A seccomp filter lets a command run on where it makes a call that cannot be
// a point, without a stop. That is most of them, and most of a run's time.
//
// The tracer has the command install it: of the first call that the new program
// makes, it makes a call of seccomp(2), and then lets the program make its own.
// Nothing has to be built into the program or started before it for that.

// installFilter stops the calls that may be points from now on. The command is
// stopped behind its execve, and has one thread.
func (t *tracer) installFilter() error {
	info, err := t.nextCallStop()
	if err != nil {
		return err
	}
	if info.Op != unix.PTRACE_SYSCALL_INFO_ENTRY || info.Arch != auditArch {
		return fmt.Errorf("first stop is %d on architecture %#x", info.Op, info.Arch)
	}
	saved, err := readRegisters(t.pid)
	if err != nil {
		return fmt.Errorf("read registers: %w", err)
	}
	// Below the stack and what a function may use of it without moving it.
	const redZone = 256
	program := filterProgram()
	code := asBytes(program)
	codeAddr := (info.SP - redZone - uint64(len(code))) &^ 15
	header := unix.SockFprog{Len: uint16(len(program))}
	headerAddr := codeAddr - uint64(unsafe.Sizeof(header))
	memory := append(asBytes([]unix.SockFprog{header}), code...)
	*(*uint64)(unsafe.Pointer(&memory[unsafe.Offsetof(header.Filter)])) = codeAddr
	if err := writeMemory(t.pid, headerAddr, memory); err != nil {
		return err
	}
	if err := changeCall(t.pid, saved, unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, headerAddr); err != nil {
		return fmt.Errorf("change the first call: %w", err)
	}
	if info, err = t.nextCallStop(); err != nil {
		return err
	}
	if ret := int64(info.Data[0]); info.Op != unix.PTRACE_SYSCALL_INFO_EXIT || ret != 0 {
		return fmt.Errorf("seccomp: %w", unix.Errno(-ret))
	}
	if err := repeatCall(t.pid, saved); err != nil {
		return fmt.Errorf("restore the first call: %w", err)
	}
	return nil
}

// nextCallStop runs the only thread to the entry or the exit of a call.
func (t *tracer) nextCallStop() (syscallStopInfo, error) {
	var sig unix.Signal
	for {
		if err := unix.PtraceSyscall(t.pid, int(sig)); err != nil {
			return syscallStopInfo{}, fmt.Errorf("resume: %w", err)
		}
		var ws unix.WaitStatus
		if err := wait4(t.pid, &ws); err != nil {
			return syscallStopInfo{}, fmt.Errorf("wait for its first call: %w", err)
		}
		if !ws.Stopped() {
			return syscallStopInfo{}, fmt.Errorf("ended before its first call: %v", describe(ws))
		}
		if sig = ws.StopSignal(); sig == unix.SIGTRAP|0x80 {
			return syscallInfo(t.pid)
		}
	}
}

// filterProgram stops all that is in calls and lets everything else pass.
func filterProgram() []unix.SockFilter {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret    = unix.BPF_RET | unix.BPF_K
		nrAt   = 0 // in struct seccomp_data
		archAt = 4
	)
	numbers := slices.Sorted(maps.Keys(calls))
	program := []unix.SockFilter{
		{Code: load, K: archAt},
		{Code: equal, K: auditArch, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: load, K: nrAt},
	}
	for i, nr := range numbers {
		// Over the numbers that are left and the instruction behind them.
		program = append(program, unix.SockFilter{Code: equal, K: uint32(nr), Jt: uint8(len(numbers) - i)})
	}
	return append(program,
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_TRACE},
	)
}

func asBytes[T any](s []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), len(s)*int(unsafe.Sizeof(s[0])))
}

func writeMemory(pid int, addr uint64, b []byte) error {
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	remote := []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}
	n, err := unix.ProcessVMWritev(pid, local, remote, 0)
	if err == nil && n < len(b) {
		err = unix.EFAULT
	}
	if err != nil {
		return fmt.Errorf("write to its stack: %w", err)
	}
	return nil
}
