package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// RemoveMemlock lifts the process's limit on locked memory, which programs and
// maps count as before Linux 5.11, and of which there is hardly any by default.
// On later kernels, which charge the memory cgroup, it does nothing. It needs
// CAP_SYS_RESOURCE, and is for main programs: the limit is the process's.
//
// cilium/ebpf/rlimit does the same, but to be imported by a command costs each
// of its runs a map, made to find out how the kernel counts.
func RemoveMemlock() error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	if !chargesLockedMemory(unix.ByteSliceToString(uts.Release[:])) {
		return nil
	}
	all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	return unix.Setrlimit(unix.RLIMIT_MEMLOCK, &all)
}

// chargesLockedMemory tells a kernel before 5.11 by its release. What can't be
// read is not one: loading tells then what is missing.
func chargesLockedMemory(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major < 5 || major == 5 && minor < 11
}
