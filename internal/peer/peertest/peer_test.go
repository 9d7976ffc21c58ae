// Package peertest runs package peer on real kernels, against processes of other
// users and in other namespaces.
package peertest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/peer"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{"connect": connect, "wait": wait})
}

// connect connects to the socket of that path, and waits for its input to end.
func connect(args []string) int {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: args[0]})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

func wait([]string) int {
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// accept has a process connect, and returns what is known of it.
func accept(t *testing.T, change func(*exec.Cmd), inspect func(*net.UnixConn, *exec.Cmd, io.Closer)) {
	t.Helper()
	dir, err := os.MkdirTemp("", "peer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := kerneltest.Command("connect", path)
	cmd.Stderr = os.Stderr
	if change != nil {
		change(cmd)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = cmd.Wait()
	}()
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	inspect(conn, cmd, in)
}

func look(t *testing.T, change func(*exec.Cmd)) (found *peer.Peer) {
	t.Helper()
	accept(t, change, func(conn *net.UnixConn, cmd *exec.Cmd, _ io.Closer) {
		p, err := peer.Of(conn)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if p.PID != cmd.Process.Pid || p.Start == 0 || p.Comm == "" {
			t.Errorf("process %d is known as %+v", cmd.Process.Pid, p.Process)
		}
		if !p.Alive() {
			t.Error("it is said to have ended")
		}
		ns, err := p.Namespace()
		if err != nil {
			t.Fatal(err)
		}
		ns.Close()
		found = p
	})
	return found
}

func TestAProcessOfThisOneIsKnown(t *testing.T) {
	p := look(t, nil)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if p.UID != 0 || p.Contained || !p.Vouched || p.Exe != self {
		t.Errorf("got %+v, want %s", p, self)
	}
}

func TestAnotherUserIsKnownByItsNumbers(t *testing.T) {
	p := look(t, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 2345, Groups: []uint32{7, 8}}}
	})
	if p.UID != 1234 || p.GID != 2345 || !slices.Equal(p.Groups, []int{7, 8}) {
		t.Errorf("got %+v", p)
	}
}

func TestAProcessInOtherNamespacesIsContained(t *testing.T) {
	for name, flags := range map[string]uintptr{"pid": syscall.CLONE_NEWPID, "user": syscall.CLONE_NEWUSER} {
		p := look(t, func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
			if flags&syscall.CLONE_NEWUSER != 0 {
				cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1234, Size: 1}}
			}
		})
		if !p.Contained {
			t.Errorf("%s: got %+v", name, p)
		}
	}
}

func TestAnotherFileOfTheSamePathIsNotVouchedFor(t *testing.T) {
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	copied := filepath.Join(dir, "program")
	b, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, b, 0o755); err != nil {
		t.Fatal(err)
	}
	accept(t, func(cmd *exec.Cmd) { cmd.Path = copied }, func(conn *net.UnixConn, _ *exec.Cmd, _ io.Closer) {
		if err := os.Remove(copied); err != nil {
			t.Fatal(err)
		}
		p, err := peer.Of(conn)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if p.Vouched {
			t.Errorf("a program that is no file any more is vouched for as %s", p.Exe)
		}
	})
}

func TestWhoHasEndedIsNobody(t *testing.T) {
	accept(t, nil, func(conn *net.UnixConn, cmd *exec.Cmd, in io.Closer) {
		p, err := peer.Of(conn)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		if p.Alive() {
			t.Error("it is said to be alive")
		}
		if _, err := p.Namespace(); !errors.Is(err, peer.ErrEnded) {
			t.Errorf("its namespace: %v", err)
		}
		if p, err := peer.Of(conn); !errors.Is(err, peer.ErrEnded) {
			t.Errorf("got %+v, %v", p, err)
		}
	})
}

func TestNothingIsVouchedForInAMountNamespaceOfItsOwn(t *testing.T) {
	p := look(t, func(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS} })
	if p.Vouched {
		t.Errorf("%s is vouched for", p.Exe)
	}
}

func TestAPidThatIsUsedAgainIsNotTakenForTheOneThatConnected(t *testing.T) {
	// Kernels that tell no more than the pid can't tell one user's processes apart.
	pidOnly := false
	if fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); err == nil {
		fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if pidOnly = errors.Is(err, unix.ENOPROTOOPT); err == nil {
			unix.Close(fd)
		}
		unix.Close(fds[0])
		unix.Close(fds[1])
	}
	as := func(uid uint32) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		}
	}
	for _, c := range []struct {
		name  string
		uid   uint32
		taken bool
	}{
		{"another user's process", 1235, false},
		{"another process of the same user", 1234, pidOnly},
	} {
		t.Run(c.name, func(t *testing.T) {
			accept(t, as(1234), func(conn *net.UnixConn, cmd *exec.Cmd, in io.Closer) {
				in.Close()
				if err := cmd.Wait(); err != nil {
					t.Fatal(err)
				}
				reuse(t, cmd.Process.Pid, as(c.uid))
				p, err := peer.Of(conn)
				if c.taken != (err == nil) || err != nil && !errors.Is(err, peer.ErrEnded) {
					t.Errorf("got %+v (%v)", p, err)
				}
				if err == nil {
					p.Close()
				}
			})
		})
	}
}

// reuse starts a process that has that pid.
func reuse(t *testing.T, pid int, change func(*exec.Cmd)) {
	t.Helper()
	for range 1000 {
		cmd := kerneltest.Command("wait")
		change(cmd)
		// The pid after it is given out next, unless a thread gets it.
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0o644); err != nil {
			t.Fatal(err)
		}
		if p := kerneltest.Start(t, cmd); p.PID() == pid {
			return
		} else {
			p.Kill()
		}
	}
	t.Fatalf("no process has got the pid %d again", pid)
}
