package crash

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const auditArch = unix.AUDIT_ARCH_AARCH64

// Sets of registers, from linux/elf.h.
const (
	ntPrstatus      = 1
	ntArmSystemCall = 0x404
)

// cancelCall takes the number from the call that a thread is about to make.
func cancelCall(tid int) error { return setCallNumber(tid, -1) }

func setCallNumber(tid int, nr int32) error {
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(&nr)), Len: uint64(unsafe.Sizeof(nr))}
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SETREGSET, uintptr(tid), ntArmSystemCall,
		uintptr(unsafe.Pointer(&iov)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func readRegisters(tid int) (unix.PtraceRegsArm64, error) {
	var regs unix.PtraceRegsArm64
	err := unix.PtraceGetRegSetArm64(tid, ntPrstatus, &regs)
	return regs, err
}

// changeCall makes another call of the one that a thread is about to make.
func changeCall(tid int, regs unix.PtraceRegsArm64, nr, arg0, arg1, arg2 uint64) error {
	regs.Regs[0], regs.Regs[1], regs.Regs[2] = arg0, arg1, arg2
	if err := unix.PtraceSetRegSetArm64(tid, ntPrstatus, &regs); err != nil {
		return err
	}
	return setCallNumber(tid, int32(nr))
}

// repeatCall has a thread that has just made a changed call make the one that
// the registers were read for. Its number is still in x8.
func repeatCall(tid int, regs unix.PtraceRegsArm64) error {
	const instruction = 4 // bytes of "svc"
	regs.Pc -= instruction
	return unix.PtraceSetRegSetArm64(tid, ntPrstatus, &regs)
}
