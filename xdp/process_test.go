package xdp_test

import (
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// start starts one of the commands below, with files as its descriptors 3 and
// up, and waits until it has done what it is for.
func start(t testing.TB, files []*os.File, command string, args ...string) *kerneltest.Process {
	t.Helper()
	cmd := kerneltest.Command(command, args...)
	cmd.ExtraFiles = files
	p := kerneltest.Start(t, cmd)
	if !p.Lines.Scan() {
		t.Fatalf("command %s said nothing", command)
	}
	return p
}

// ready says that the command has done what it is for, and waits.
func ready() int {
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// hold does nothing with what it inherited.
func hold([]string) int { return ready() }

// attachOwn attaches a program to a hook by a link.
func attachOwn(netns, name string, p *ebpf.Program) (*xdp.Link, error) {
	h, err := openHook(netns, name)
	if err != nil {
		return nil, err
	}
	return h.AttachLink(p)
}

// own attaches the program that it inherited.
func own(args []string) int {
	p, err := ebpf.NewProgramFromFD(3)
	if err != nil {
		return fail(err)
	}
	if _, err := attachOwn(args[0], args[1], p); err != nil {
		return fail(err)
	}
	return ready()
}

// persist attaches a program and makes it permanent at a path.
func persist(args []string) int {
	p, err := loadPass("permanent")
	if err != nil {
		return fail(err)
	}
	l, err := attachOwn(args[0], args[1], p)
	if err != nil {
		return fail(err)
	}
	if err := l.Persist(args[2]); err != nil {
		return fail(err)
	}
	return ready()
}

// send attaches a program and sends the link into the socket that it inherited.
func send(args []string) int {
	p, err := loadPass("sent")
	if err != nil {
		return fail(err)
	}
	l, err := attachOwn(args[0], args[1], p)
	if err != nil {
		return fail(err)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(l.FD()), nil, 0); err != nil {
		return fail(err)
	}
	return ready()
}

// receive takes one descriptor out of a socket.
func receive(t testing.TB, socket int) int {
	t.Helper()
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), control, 0)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("descriptors %v, %v", fds, err)
	}
	return fds[0]
}

// dup is a second descriptor, as a file to hand to a process.
func dup(t testing.TB, fd int) *os.File {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(n), "descriptor")
	t.Cleanup(func() { f.Close() })
	return f
}
