package daemontest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/wire"
)

// stalling is a file on a FUSE file system whose server answers only what it takes to
// open it. Whoever looks at it, reads it or closes it waits until the server ends, which
// the function that is returned has it do.
func stalling(t *testing.T) (fd int, end func()) {
	t.Helper()
	// It tells nobody that there is something to read until it is mounted, so that it
	// must not be one that is waited for with others.
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		t.Skip("the kernel has no FUSE")
	}
	if err != nil {
		t.Fatal(err)
	}
	device := os.NewFile(uintptr(fuse), "/dev/fuse")
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0", fuse, unix.S_IFREG|0o600)
	if err := unix.Mount("stalling", path, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	// A process of its own, because whoever waits for itself waits for ever.
	cmd := kerneltest.Command("stall")
	cmd.ExtraFiles = []*os.File{device}
	server := kerneltest.Start(t, cmd)
	if err := device.Close(); err != nil {
		t.Fatal(err)
	}
	// An os.File would be polled.
	if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	return fd, func() {
		server.Kill()
		unix.Close(fd)
	}
}

// stall is the server. It ends when it is killed.
func stall([]string) int {
	if err := serveOpen(os.NewFile(3, "/dev/fuse")); err != nil {
		fmt.Println(err)
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// The requests that come before a file is open, see linux/fuse.h.
const (
	fuseGetattr = 3
	fuseOpen    = 14
	fuseInit    = 26
)

// serveOpen answers until a file is open.
func serveOpen(server *os.File) error {
	order := binary.LittleEndian
	b := make([]byte, 1<<17)
	for {
		n, err := server.Read(b)
		if err != nil {
			return err
		}
		if n < 40 {
			return fmt.Errorf("a request of %d bytes", n)
		}
		code, unique := order.Uint32(b[4:]), order.Uint64(b[8:])
		var body []byte
		var refused int32
		switch code {
		case fuseInit:
			body = make([]byte, 64)
			order.PutUint32(body, 7)
			order.PutUint32(body[4:], 31)
			order.PutUint32(body[20:], 4096) // how much may be written at once
		case fuseGetattr:
			body = make([]byte, 104)
			order.PutUint64(body[16:], 1)
			order.PutUint64(body[24:], 4096)
			order.PutUint32(body[76:], unix.S_IFREG|0o600)
			order.PutUint32(body[80:], 1)
		case fuseOpen:
			body = make([]byte, 16)
		default:
			refused = -int32(unix.ENOSYS)
		}
		answer := make([]byte, 16, 16+len(body))
		order.PutUint32(answer, uint32(16+len(body)))
		order.PutUint32(answer[4:], uint32(refused))
		order.PutUint64(answer[8:], unique)
		if _, err := server.Write(append(answer, body...)); err != nil {
			return err
		}
		if code == fuseOpen {
			return nil
		}
	}
}

// A file that somebody else serves holds up who sends it, and nobody else: not even the
// daemon's end.
func TestAFileWhoseServerStallsHoldsUpNobodyElse(t *testing.T) {
	p := newPlace(t)
	file, end := stalling(t)
	defer end()
	hook, ns := p.hook()
	for method, parameters := range map[string]any{
		"Attach": wire.Attach{Hook: hook, Name: "stalls", Object: &wire.Object{File: 1}},
		"Claim":  wire.Claim{Proof: 1},
		"List":   wire.List{Netns: new(1)},
		"Get":    wire.Get{Hook: hook}, // which does not name it
	} {
		p.sendRaw(method, parameters, int(ns.Fd()), file)
	}
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Errorf("somebody else's attach: %v", err)
	}
	if err := c.detach("a"); err != nil {
		t.Error(err)
	}
	p.empty()
	p.stop()
}

// sendRaw sends a call with descriptors that are no files to this process.
func (p *place) sendRaw(method string, parameters any, fds ...int) {
	p.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.socket, Net: "unix"})
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { conn.Close() })
	b, err := json.Marshal(map[string]any{"method": wire.Interface + "." + method, "parameters": parameters})
	if err != nil {
		p.Fatal(err)
	}
	if _, _, err := conn.WriteMsgUnix(append(b, 0), unix.UnixRights(fds...), nil); err != nil {
		p.Fatal(err)
	}
}
