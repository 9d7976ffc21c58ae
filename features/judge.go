package features

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// refutation is a probe's own finding that a feature is not there, such as a
// kernel that accepts what it should refuse.
type refutation string

func (r refutation) Error() string { return string(r) }

// undecided is a probe's own finding that it can't tell.
type undecided string

func (u undecided) Error() string { return string(u) }

// eNOTSUPP is the kernel's internal ENOTSUPP, which some BPF code lets escape.
const eNOTSUPP = unix.Errno(524)

// judge turns what came of a try into an answer. since is the first Linux with
// the feature. Every probe differs from one that works by the feature alone,
// so that EINVAL means that the kernel does not know it.
func judge(err error, since string) (Answer, string) {
	var (
		no       refutation
		unclear  undecided
		verifier *ebpf.VerifierError
	)
	switch {
	case err == nil:
		return Yes, ""
	case errors.As(err, &no):
		return No, no.Error()
	case errors.As(err, &unclear):
		return Unknown, unclear.Error()
	case errors.As(err, &verifier) && len(verifier.Log) > 0:
		// Its EACCES and EINVAL mean something else than anybody else's.
		return Unknown, fmt.Sprintf("the verifier refused the program that tries it: %s", oneLine(verifier))
	case isPermission(err):
		if refusedToAll() {
			return No, "the kernel refuses it (" + short(err) + ") although the caller has CAP_SYS_ADMIN: a security policy forbids it, or the kernel was built so"
		}
		return Unknown, "not permitted (" + short(err) + "): trying it takes CAP_SYS_ADMIN, outside any user namespace"
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, xdp.ErrNotSupported),
		isAny(err, unix.EOPNOTSUPP, eNOTSUPP, unix.ENOSYS, unix.EINVAL, unix.E2BIG, unix.ENOPROTOOPT):
		reason := "the kernel does not know it (" + short(err) + ")"
		if since != "" {
			reason += fmt.Sprintf("; Linux has it from %s on", since)
		}
		return No, reason
	default:
		return Unknown, "trying it failed: " + oneLine(err)
	}
}

func isPermission(err error) bool {
	return errors.Is(err, xdp.ErrPermission) || isAny(err, unix.EPERM, unix.EACCES)
}

func isAny(err error, errnos ...unix.Errno) bool {
	for _, errno := range errnos {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// short is the kernel's bare answer, for those who look it up.
func short(err error) string {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return oneLine(err)
	}
	switch errno {
	case unix.EOPNOTSUPP: // not ENOTSUP, which has the same number
		return "EOPNOTSUPP"
	case eNOTSUPP:
		return "ENOTSUPP"
	}
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return errno.Error()
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}

// refusedToAll tells whether a refusal for lack of permission can't be due to
// the caller, because it has them all.
func refusedToAll() bool {
	return hasAdmin() && initialUserNamespace() && !memlockInTheWay()
}

func hasAdmin() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// initialUserNamespace: the first user namespace has a fixed inode number,
// PROC_USER_INIT_INO in include/linux/proc_ns.h.
func initialUserNamespace() bool {
	const initial = 0xEFFFFFFD
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/user", &st) == nil && st.Ino == initial
}

// memlockInTheWay: before Linux 5.11 exceeding RLIMIT_MEMLOCK is EPERM.
func memlockInTheWay() bool {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit) == nil && limit.Cur == unix.RLIM_INFINITY {
		return false
	}
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return true
	}
	var major, minor int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(uts.Release[:]), "%d.%d", &major, &minor); n != 2 {
		return true
	}
	return major < 5 || major == 5 && minor < 11
}
