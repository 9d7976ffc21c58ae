package installtest

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/vm"
	"golang.org/x/sys/unix"
)

// machine is a Debian system of its own, in process and mount namespaces: what is
// asked of it is done by its process 1, whose end is its own.
type machine struct {
	*testing.T
	process *kerneltest.Process
}

// request is a line to process 1, and answer one from it.
type request struct {
	// Run is a command that is run to its end, Daemon one that is started as by
	// systemd and has said that it is ready, Start any other one.
	Run, Daemon, Start []string `json:",omitempty"`
	Stop               string   `json:",omitempty"` // what was started, by its program
	Unmount            string   `json:",omitempty"`
	Write              string   `json:",omitempty"` // a file, with Text
	Text               []byte   `json:",omitempty"`
}

type answer struct {
	Code   int
	Output string // standard output and standard error
	Error  string `json:",omitempty"`
}

// newMachine starts a machine in a network namespace. The directory of files is
// there as /packages.
func newMachine(t *testing.T, ns *kerneltest.NetNS, files string) *machine {
	t.Helper()
	root, err := vm.OpenRoot("bookworm")
	if err != nil {
		t.Fatal(err)
	}
	cmd := kerneltest.Command("machine", root, files)
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWPID
	m := &machine{t, ns.Start(t, cmd)}
	m.Cleanup(func() {
		if err := errors.Join(m.process.Input.Close(), m.process.Wait()); err != nil {
			t.Errorf("the machine ended with %v", err)
		}
	})
	return m
}

func (m *machine) ask(r request) answer {
	m.Helper()
	if err := json.NewEncoder(m.process.Input).Encode(r); err != nil {
		m.Fatal(err)
	}
	if !m.process.Lines.Scan() {
		m.Fatalf("the machine has ended over %+v", r)
	}
	var a answer
	if err := json.Unmarshal(m.process.Lines.Bytes(), &a); err != nil {
		m.Fatal(err)
	}
	return a
}

// must asks for what has to be done, and returns what it said.
func (m *machine) must(r request) string {
	m.Helper()
	a := m.ask(r)
	if a.Code != 0 || a.Error != "" {
		m.Fatalf("%+v: exit code %d %s\n%s", r, a.Code, a.Error, a.Output)
	}
	return a.Output
}

func (m *machine) run(args ...string) string {
	m.Helper()
	return m.must(request{Run: args})
}

// has tells whether a file is there.
func (m *machine) has(path string) bool {
	m.Helper()
	return m.ask(request{Run: []string{"test", "-e", path}}).Code == 0
}

// eventually waits for a command to say something.
func (m *machine) eventually(says string, args ...string) {
	m.Helper()
	var a answer
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if a = m.ask(request{Run: args}); a.Code == 0 && strings.Contains(a.Output, says) {
			return
		}
	}
	m.Fatalf("%v says, with exit code %d, not %q:\n%s", args, a.Code, says, a.Output)
}

// serve is process 1 of a machine.
func serve(args []string) int {
	if err := serving(args[0], args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		return 1
	}
	return 0
}

func serving(root, files string) error {
	if err := enter(root, files); err != nil {
		return err
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notifySocket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer notify.Close()
	ready := make(chan struct{}, 1)
	go tell(ready, notify)
	started := map[string]child{}
	out := json.NewEncoder(os.Stdout)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var r request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			return err
		}
		a, err := r.do(started, ready)
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return nil // what was started ends with process 1
}

const notifySocket = "/run/notify"

// tell tells when a daemon says that it is ready. Descriptors that it wants to have
// kept are not: what holds the chain has to be its pins.
func tell(ready chan<- struct{}, notify *net.UnixConn) {
	b := make([]byte, 4096)
	for {
		n, err := notify.Read(b)
		if err != nil {
			return
		}
		if strings.Contains(string(b[:n]), "READY=1") {
			ready <- struct{}{}
		}
	}
}

// child is what process 1 has started, and how it has ended.
type child struct {
	process *os.Process
	ended   <-chan error
}

func (r request) do(started map[string]child, ready <-chan struct{}) (answer, error) {
	start := func(args []string) (child, error) {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notifySocket)
		if err := cmd.Start(); err != nil {
			return child{}, err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		c := child{cmd.Process, ended}
		started[strings.Join(args[:2], " ")] = c
		return c, nil
	}
	switch {
	case r.Run != nil:
		out, err := exec.Command(r.Run[0], r.Run[1:]...).CombinedOutput()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return answer{Code: exit.ExitCode(), Output: string(out)}, nil
		}
		return answer{Output: string(out)}, err
	case r.Daemon != nil:
		c, err := start(r.Daemon)
		if err != nil {
			return answer{}, err
		}
		select {
		case <-ready:
			return answer{}, nil
		case err := <-c.ended:
			return answer{}, fmt.Errorf("it has ended before it was ready: %w", err)
		}
	case r.Start != nil:
		_, err := start(r.Start)
		return answer{}, err
	case r.Stop != "":
		c, runs := started[r.Stop]
		if !runs {
			return answer{}, fmt.Errorf("%q does not run", r.Stop)
		}
		delete(started, r.Stop)
		if err := c.process.Signal(unix.SIGTERM); err != nil {
			return answer{}, err
		}
		return answer{}, <-c.ended
	case r.Write != "":
		return answer{}, os.WriteFile(r.Write, r.Text, 0o644)
	case r.Unmount != "":
		return answer{}, unix.Unmount(r.Unmount, 0)
	}
	return answer{}, errors.New("nothing was asked for")
}

// enter makes the machine's root the process's.
func enter(root, files string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/run", "machine")
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	if err := untar(root, dir); err != nil {
		return fmt.Errorf("%s: %w", root, err)
	}
	if err := os.CopyFS(filepath.Join(dir, "packages"), os.DirFS(files)); err != nil {
		return err
	}
	for _, m := range []struct{ fstype, dir, data string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"bpf", "/sys/fs/bpf", "mode=0700"},
		{"tmpfs", "/run", "mode=0755"}, {"tmpfs", "/tmp", "mode=1777"},
	} {
		if err := unix.Mount(m.fstype, dir+m.dir, m.fstype, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	// What pivot_root is for does not work where the root is the initramfs.
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	os.Clearenv()
	for name, value := range map[string]string{
		"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return nil
}

// untar unpacks a root below a directory.
func untar(name, dir string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := entry(h, r, dir); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func entry(h *tar.Header, r io.Reader, dir string) error {
	path := filepath.Join(dir, h.Name)
	mode := uint32(h.FileInfo().Mode().Perm()) | uint32(h.Mode)&0o7000
	switch h.Typeflag {
	case tar.TypeDir:
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	case tar.TypeReg:
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, path)
	case tar.TypeLink:
		return os.Link(filepath.Join(dir, h.Linkname), path)
	case tar.TypeChar:
		if err := unix.Mknod(path, unix.S_IFCHR|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
			return err
		}
	default:
		return fmt.Errorf("entries of type %q are not expected", h.Typeflag)
	}
	if err := os.Chown(path, h.Uid, h.Gid); err != nil {
		return err
	}
	return unix.Chmod(path, mode)
}
