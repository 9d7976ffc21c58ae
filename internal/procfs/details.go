package procfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Details are what tells people which process it is.
type Details struct {
	Comm string
	// Parent is the process's parent now: that of a process whose parent has
	// ended is process 1, or another that takes in orphans.
	Parent int
	// Orphan tells that the process that started it may have ended: it leads no
	// session, and is in another than its parent. Either it was given to that, or
	// its parent has called setsid since.
	Orphan bool
	// Started is when the process started, to the second or so.
	Started time.Time
	Cgroup  string
}

// ReadDetails reads what tells people which process it is. The error is
// ErrNoProcess where it has ended.
func ReadDetails(pid int) (Details, error) {
	s, err := readStat(pid)
	if err != nil {
		return Details{}, err
	}
	d := Details{
		Comm: Comm(pid), Cgroup: Cgroup(pid),
		Parent: s.parent, Started: started(s.start),
	}
	if parent, err := readStat(s.parent); err == nil {
		d.Orphan = s.session != pid && s.session != parent.session
	}
	return d, nil
}

// started turns clock ticks since boot, of which a second has 100 for all that
// reads /proc (USER_HZ), into a time of day.
func started(ticks uint64) time.Time {
	const tick = 10 * time.Millisecond
	var boot unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return time.Time{}
	}
	return time.Now().Add(time.Duration(ticks)*tick - time.Duration(boot.Nano())).Round(time.Second)
}

// Socket is a Unix socket with descriptors under way to it: they were sent, and
// whoever has the socket has not received them yet.
type Socket struct {
	Holder
	// Inode is the socket's number, as `ss -x` shows it.
	Inode uint64 `json:"inode"`
	// Descriptors is how many are under way, of whatever.
	Descriptors int `json:"descriptors"`
}

// InFlight looks for descriptors that are under way in Unix sockets, each socket
// once. What they are of the kernel does not tell. Since Linux 5.6.
func InFlight() ([]Socket, error) { return inFlight("/proc") }

func inFlight(proc string) ([]Socket, error) {
	var all directory
	if err := all.open(unix.AT_FDCWD, proc); err != nil {
		return nil, fmt.Errorf("open %s: %w", proc, err)
	}
	defer all.close()
	names, err := all.names()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", proc, err)
	}
	var found []Socket
	seen := map[uint64]bool{}
	var fds directory
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || fds.open(all.fd, name+"/fd") != nil {
			continue
		}
		descriptors, _ := fds.names()
		for _, fd := range descriptors {
			target, err := fds.link(fd)
			if err != nil {
				continue
			}
			inode, ok := socketInode(string(target))
			if !ok || seen[inode] {
				continue
			}
			seen[inode] = true
			info, err := os.ReadFile(filepath.Join(proc, name, "fdinfo", fd))
			if err != nil {
				continue
			}
			if n := ParseFDInfo(info)["scm_fds"]; n > 0 {
				comm, _ := os.ReadFile(filepath.Join(proc, name, "comm"))
				found = append(found, Socket{Holder{pid, strings.TrimSpace(string(comm))}, inode, int(n)})
			}
		}
		fds.close()
	}
	return found, nil
}

// socketInode reads "socket:[4711]".
func socketInode(target string) (uint64, bool) {
	number, ok := strings.CutPrefix(target, "socket:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
	return inode, err == nil
}

// SeesAll tells whether the caller's /proc has the processes of all process
// namespaces: it is in the first one, and may look into what is root's.
func SeesAll() bool {
	var st unix.Stat_t
	// PROC_PID_INIT_INO in include/linux/proc_ns.h.
	const first = 0xEFFFFFFC
	return unix.Stat("/proc/self/ns/pid", &st) == nil && st.Ino == first && os.Geteuid() == 0
}
