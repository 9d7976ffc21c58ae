// Package peer tells who is at the other end of a Unix socket, as the kernel vouches
// for it: nothing that the peer says is taken into account.
package peer

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/procfs"
)

// Peer is a process that connected. It is as it was when it was looked at: its user
// is that of the connection, and the rest is read from /proc while a pidfd shows that
// the process is still the one that connected. The caller closes it.
//
// A process can connect and then execute another program, as whose it is known then.
// So Exe says no more than that the same user has run that program: a rule about
// programs is about what users that are trusted alike run.
type Peer struct {
	UID, GID int
	// Groups are the supplementary groups.
	Groups []int
	procfs.Process
	Comm   string
	Cgroup string
	// Exe is the path of its program as the process itself sees it, and Vouched
	// tells that this is the program that has that path on the host: in a mount
	// namespace of its own a process could have any at any path, and any library
	// with it.
	Exe     string
	Vouched bool
	// Contained tells that the process is in other user or process namespaces than
	// this one, or in a container's cgroup.
	Contained bool

	pidfd *os.File
	// exact tells that the kernel gave the process itself, and not only its pid.
	exact bool
}

// ErrEnded says that the process that connected has ended.
var ErrEnded = errors.New("the process that connected has ended")

// soPeerPidfd is SO_PEERPIDFD. Since Linux 6.5.
const soPeerPidfd = 77

// Of tells who connected. Before Linux 6.5 the process is found by its pid alone: where
// it has ended since, and another process of the same user has got its pid, it is that
// one which is looked at. A process of another user is never taken for it.
// The error is ErrEnded where it has ended, and one of its own where it is in no
// process namespace that can be seen from here.
func Of(conn *net.UnixConn) (*Peer, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	p := &Peer{}
	var lookErr error
	err = raw.Control(func(fd uintptr) { lookErr = p.connected(int(fd)) })
	if err = errors.Join(err, lookErr); err == nil {
		err = p.look()
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("find out who connected: %w", err)
	}
	return p, nil
}

// connected reads what the socket knows.
func (p *Peer) connected(fd int) error {
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	p.UID, p.GID, p.PID = int(c.Uid), int(c.Gid), int(c.Pid)
	if p.PID <= 0 {
		return errors.New("its process can't be seen from here")
	}
	if p.Groups, err = groups(fd); err != nil {
		return err
	}
	pidfd, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, soPeerPidfd)
	p.exact = err == nil
	if errors.Is(err, unix.ENOPROTOOPT) {
		pidfd, err = unix.PidfdOpen(p.PID, 0)
	}
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
		return ErrEnded // EINVAL of a process that was waited for already
	case err != nil:
		return os.NewSyscallError("getsockopt", err)
	}
	unix.CloseOnExec(pidfd)
	p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	return nil
}

// groups reads SO_PEERGROUPS.
func groups(fd int) ([]int, error) {
	var ids [64]uint32
	buffer := ids[:]
	for {
		size := uint32(len(buffer) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buffer[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && int(size) > len(buffer)*4:
			buffer = make([]uint32, size/4)
			continue
		case errno != 0:
			return nil, os.NewSyscallError("getsockopt", errno)
		}
		all := make([]int, 0, size/4)
		for _, id := range buffer[:size/4] {
			all = append(all, int(id))
		}
		return all, nil
	}
}

// look reads what /proc knows. It is of the process that the pidfd is of if that
// lives afterwards.
func (p *Peer) look() error {
	process, err := procfs.ReadProcess(p.PID)
	if err != nil {
		return errors.Join(ErrEnded, err)
	}
	p.Process = process
	p.Comm, p.Cgroup = procfs.Comm(p.PID), procfs.Cgroup(p.PID)
	p.Exe, p.Vouched = exe(p.PID)
	p.Contained = Container(p.Cgroup) != ""
	for _, kind := range []string{"user", "pid"} {
		same, err := sameNamespace(p.PID, "self", kind)
		if err != nil && !errors.Is(err, os.ErrPermission) {
			return err
		}
		if !same {
			p.Contained = true // also where it can't be told
		}
	}
	if !p.exact {
		uids, err := procfs.UIDs(p.PID)
		if err != nil {
			return errors.Join(ErrEnded, err)
		}
		if !slices.Contains(uids, p.UID) {
			return ErrEnded // its pid is another user's process's by now
		}
	}
	if !p.Alive() {
		return ErrEnded
	}
	return nil
}

// exe reads what the process runs, and whether the same file has that path on the host:
// for process 1, because the daemon's own unit hides files from it.
func exe(pid int) (path string, vouched bool) {
	link := fmt.Sprintf("/proc/%d/exe", pid)
	path, err := os.Readlink(link)
	if err != nil {
		return "", false
	}
	its, err := os.Stat(link)
	if err != nil {
		return path, false
	}
	ours, err := os.Stat("/proc/1/root" + path)
	if err != nil || !os.SameFile(its, ours) {
		return path, false
	}
	same, err := sameNamespace(pid, "1", "mnt")
	return path, err == nil && same
}

// sameNamespace tells whether the process is in the other's namespace of the kind.
func sameNamespace(pid int, other, kind string) (bool, error) {
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		return false, err
	}
	ours, err := os.Readlink("/proc/" + other + "/ns/" + kind)
	return its == ours, err
}

// Alive tells whether the process runs still.
func (p *Peer) Alive() bool {
	// A pidfd is readable once its process has ended.
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd.Fd()), Events: unix.POLLIN}}, 0)
	return err == nil && n == 0 || errors.Is(err, unix.EINTR)
}

// Namespace opens the network namespace of the process. The caller closes it.
func (p *Peer) Namespace() (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", p.PID))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil, ErrEnded
	}
	if err != nil {
		return nil, err
	}
	if !p.Alive() {
		f.Close()
		return nil, ErrEnded
	}
	return f, nil
}

// Close closes the pidfd.
func (p *Peer) Close() error {
	if p.pidfd == nil {
		return nil
	}
	return p.pidfd.Close()
}
