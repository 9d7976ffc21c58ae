package crash

import "golang.org/x/sys/unix"

func init() {
	// The calls that younger architectures do not have. Go does not make
	// them, programs written in C do.
	for nr, c := range map[uint64]call{
		unix.SYS_OPEN:    {"open", opened(noArg, 0, 1)},
		unix.SYS_CREAT:   {"creat", path(noArg, 0)},
		unix.SYS_MKDIR:   {"mkdir", path(noArg, 0)},
		unix.SYS_RMDIR:   {"rmdir", path(noArg, 0)},
		unix.SYS_UNLINK:  {"unlink", path(noArg, 0)},
		unix.SYS_RENAME:  {"rename", paths(noArg, 0, noArg, 1)},
		unix.SYS_LINK:    {"link", paths(noArg, 0, noArg, 1)},
		unix.SYS_SYMLINK: {"symlink", paths(noArg, 0, noArg, 1)},
		unix.SYS_MKNOD:   {"mknod", path(noArg, 0)},
		unix.SYS_CHMOD:   {"chmod", path(noArg, 0)},
		unix.SYS_CHOWN:   {"chown", path(noArg, 0)},
		unix.SYS_FORK:    {"fork", plain},
		unix.SYS_VFORK:   {"vfork", plain},
	} {
		calls[nr] = c
	}
}

const auditArch = unix.AUDIT_ARCH_X86_64

// cancelCall takes the number from the call that a thread is about to make.
func cancelCall(tid int) error {
	const origRax = 15 * 8 // in struct user_regs_struct
	_, err := unix.PtracePokeUser(tid, origRax, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	return err
}

func readRegisters(tid int) (unix.PtraceRegs, error) {
	var regs unix.PtraceRegs
	err := unix.PtraceGetRegs(tid, &regs)
	return regs, err
}

// changeCall makes another call of the one that a thread is about to make.
func changeCall(tid int, regs unix.PtraceRegs, nr, arg0, arg1, arg2 uint64) error {
	regs.Orig_rax, regs.Rdi, regs.Rsi, regs.Rdx = nr, arg0, arg1, arg2
	return unix.PtraceSetRegs(tid, &regs)
}

// repeatCall has a thread that has just made a changed call make the one that
// the registers were read for.
func repeatCall(tid int, regs unix.PtraceRegs) error {
	const instruction = 2 // bytes of "syscall"
	regs.Rip -= instruction
	regs.Rax = regs.Orig_rax
	regs.Orig_rax = ^uint64(0) // no call that a signal could restart
	return unix.PtraceSetRegs(tid, &regs)
}
