package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	switch os.Getenv("SYSTEMD_TEST") {
	case "exec": // systemd does this between fork and exec, as here
		os.Setenv("SYSTEMD_TEST", "service")
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		os.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
		fmt.Println(unix.Exec("/proc/self/exe", os.Args, os.Environ()))
		os.Exit(1)
	case "service":
		if err := service(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// service greets on each of its sockets, and shows what was stored.
func service() error {
	s, err := Start()
	if err != nil {
		return err
	}
	defer s.Close()
	for _, name := range variables {
		if _, ok := os.LookupEnv(name); ok {
			return fmt.Errorf("%s is still in the environment", name)
		}
	}
	fmt.Println("watchdog", s.Watchdog)
	for _, d := range s.Descriptors {
		if flags, err := unix.FcntlInt(d.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			return fmt.Errorf("descriptor %q is inherited by others (%w)", d.Name, err)
		}
		if d.Name != "socket" {
			b, err := io.ReadAll(d)
			fmt.Printf("%s: %s %v\n", d.Name, b, err)
			continue
		}
		l, err := d.Listener()
		if err != nil {
			return err
		}
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
	}
	return s.Ready()
}

// start runs this binary as a service with those descriptors, to its end.
func start(t *testing.T, files []*os.File, environ ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), append([]string{"SYSTEMD_TEST=exec"}, environ...)...)
	cmd.ExtraFiles = files
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// notifySocket is what systemd has on its side.
func notifySocket(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// receive is the next message, with its descriptors, which the test closes.
func receive(t *testing.T, l *net.UnixConn) (string, []*os.File) {
	t.Helper()
	b, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(maxFiles*4))
	n, nrights, _, _, err := l.ReadMsgUnix(b, rights)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:nrights])
	if err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "received")
			t.Cleanup(func() { f.Close() })
			files = append(files, f)
		}
	}
	return string(b[:n]), files
}

func listening(t *testing.T, network, address string) *os.File {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func fileWith(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAServiceGetsItsSocketAndWhatItStored(t *testing.T) {
	dir := t.TempDir()
	socket := listening(t, "unix", filepath.Join(dir, "socket"))
	conn, err := net.Dial("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	told := notifySocket(t, filepath.Join(dir, "notify"))
	out, err := start(t, []*os.File{fileWith(t, "one"), socket, fileWith(t, "two")},
		"LISTEN_FDS=3", "LISTEN_FDNAMES=link:socket:link", "WATCHDOG_USEC=30000000", "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	if want := "watchdog 30s\nlink: one <nil>\nlink: two <nil>\n"; err != nil || out != want {
		t.Fatalf("the service says %q (%v), want %q", out, err, want)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
		t.Errorf("from the socket comes %q (%v)", b, err)
	}
	if got, _ := receive(t, told); got != "READY=1" {
		t.Errorf("systemd is told %q", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "socket")); err != nil {
		t.Errorf("the socket's file, which is systemd's: %v", err)
	}
}

func TestOnlyAListeningUnixStreamSocketIsTakenForTheSocket(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	connected := os.NewFile(uintptr(pair[0]), "connected")
	defer connected.Close()
	defer unix.Close(pair[1])
	seqpacket := listening(t, "unixpacket", filepath.Join(t.TempDir(), "socket"))
	for _, c := range []struct {
		name string
		file *os.File
		says string
	}{
		{"a file", fileWith(t, "x"), "it is no socket"},
		{"a TCP socket", listening(t, "tcp", "127.0.0.1:0"), "another family"},
		{"a seqpacket socket", seqpacket, "it is no stream socket"},
		{"a connection", connected, "it does not listen"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := start(t, []*os.File{c.file}, "LISTEN_FDS=1", "LISTEN_FDNAMES=socket")
			if err == nil || !strings.Contains(out, c.says) {
				t.Errorf("the service says %q (%v), want %q", out, err, c.says)
			}
		})
	}
}

func TestADescriptorThatIsNotThereIsAnError(t *testing.T) {
	out, err := start(t, []*os.File{fileWith(t, "x")}, "LISTEN_FDS=300")
	if err == nil || !strings.Contains(out, "descriptor ") || !strings.Contains(out, "bad file descriptor") {
		t.Errorf("the service says %q (%v)", out, err)
	}
}

func TestTheEnvironmentIsRead(t *testing.T) {
	for _, c := range []struct {
		name     string
		env      map[string]string
		names    []string
		watchdog time.Duration
		notify   string
		fails    string
	}{
		{name: "nothing"},
		{name: "all", env: map[string]string{
			"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b",
			"WATCHDOG_PID": "7", "WATCHDOG_USEC": "1", "NOTIFY_SOCKET": "@x",
		}, names: []string{"a", "b"}, watchdog: time.Microsecond, notify: "@x"},
		{name: "no names", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2"}, names: []string{"", ""}},
		{name: "no descriptors", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "0"}},
		{name: "for another process", env: map[string]string{"LISTEN_PID": "8", "LISTEN_FDS": "2", "WATCHDOG_PID": "8", "WATCHDOG_USEC": "1"}},
		{name: "descriptors for nobody", env: map[string]string{"LISTEN_FDS": "2"}},
		{name: "a watchdog for whoever it is", env: map[string]string{"WATCHDOG_USEC": "2000000"}, watchdog: 2 * time.Second},
		{name: "more names", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"}, fails: "1 descriptors and 2 names"},
		{name: "fewer names", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, fails: "2 descriptors and 1 names"},
		{name: "a negative number", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "-1"}, fails: "LISTEN_FDS"},
		{name: "a huge number", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "2147483647"}, fails: "LISTEN_FDS"},
		{name: "no number", env: map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "x"}, fails: "LISTEN_FDS"},
		{name: "no time", env: map[string]string{"WATCHDOG_USEC": "0"}, fails: "WATCHDOG_USEC"},
		{name: "a time too long", env: map[string]string{"WATCHDOG_USEC": "9223372036854775807"}, fails: "WATCHDOG_USEC"},
		{name: "a socket of another kind", env: map[string]string{"NOTIFY_SOCKET": "vsock:2:1"}, fails: "NOTIFY_SOCKET"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := parse(func(name string) string { return c.env[name] }, 7)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("the error is %v, want one of %s", err, c.fails)
				}
				return
			}
			if err != nil || !slices.Equal(e.names, c.names) || e.watchdog != c.watchdog || e.notify != c.notify {
				t.Errorf("it is %+v (%v)", e, err)
			}
		})
	}
}

func TestSystemdIsToldHowTheServiceIs(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@holdfast-test-%d", os.Getpid())} {
		told := notifySocket(t, name)
		n := Notifier{name}
		for _, c := range []struct {
			tell func() error
			want string
		}{
			{n.Ready, "READY=1"},
			{n.Stopping, "STOPPING=1"},
			{n.Watching, "WATCHDOG=1"},
			{func() error { return n.Status("3 members\nREADY=1") }, "STATUS=3 members READY=1"},
			{func() error { return n.Remove("link 7") }, "FDSTOREREMOVE=1\nFDNAME=link 7"},
		} {
			if err := c.tell(); err != nil {
				t.Fatal(err)
			}
			if got, files := receive(t, told); got != c.want || files != nil {
				t.Errorf("systemd is told %q, with %d descriptors; want %q", got, len(files), c.want)
			}
		}
		if err := n.Reloading(); err != nil {
			t.Fatal(err)
		}
		var usec uint64
		got, _ := receive(t, told)
		if _, err := fmt.Sscanf(got, "RELOADING=1\nMONOTONIC_USEC=%d", &usec); err != nil || usec == 0 {
			t.Errorf("systemd is told %q", got)
		}
	}
}

func TestDescriptorsAreStored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	told := notifySocket(t, path)
	n := Notifier{path}
	var files []*os.File
	for i := range maxFiles + 1 {
		files = append(files, fileWith(t, strconv.Itoa(i)))
	}
	if err := n.Store("links", files...); err != nil {
		t.Fatal(err)
	}
	var kept []*os.File
	for range 2 {
		message, some := receive(t, told)
		if message != "FDSTORE=1\nFDPOLL=0\nFDNAME=links" {
			t.Errorf("systemd is told %q", message)
		}
		kept = append(kept, some...)
	}
	if len(kept) != len(files) {
		t.Fatalf("of %d descriptors %d arrive", len(files), len(kept))
	}
	for i, f := range kept {
		if b, err := io.ReadAll(f); err != nil || string(b) != strconv.Itoa(i) {
			t.Errorf("descriptor %d is %q (%v)", i, b, err)
		}
	}
	for _, name := range []string{"", "a:b", "a\nREADY=1", "ä", strings.Repeat("x", 256)} {
		if err := n.Store(name, files[0]); err == nil {
			t.Errorf("a descriptor is stored by the name %q", name)
		}
		if err := n.Remove(name); err == nil {
			t.Errorf("a descriptor is removed by the name %q", name)
		}
	}
}

func TestABarrierIsPassedWhenSystemdClosesIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	told := notifySocket(t, path)
	n := Notifier{path}
	passed := make(chan error)
	go func() { passed <- n.Barrier(t.Context()) }()
	message, files := receive(t, told)
	if message != "BARRIER=1" || len(files) != 1 {
		t.Fatalf("systemd is told %q, with %d descriptors", message, len(files))
	}
	select {
	case err := <-passed:
		t.Fatalf("it is passed before (%v)", err)
	default:
	}
	files[0].Close()
	if err := <-passed; err != nil {
		t.Error(err)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	go func() { passed <- n.Barrier(ctx) }()
	receive(t, told)
	cancel(enough)
	if err := <-passed; !errors.Is(err, enough) {
		t.Errorf("given up it says %v", err)
	}
}

func TestWithoutSystemdNobodyIsTold(t *testing.T) {
	var n Notifier
	if n.Enabled() {
		t.Error("it is enabled")
	}
	for _, err := range []error{n.Ready(), n.Reloading(), n.Stopping(), n.Status("x"), n.Watching(), n.Store("x", os.Stdin), n.Remove("x"), n.Barrier(t.Context())} {
		if err != nil {
			t.Error(err)
		}
	}
	gone := Notifier{filepath.Join(t.TempDir(), "none")}
	if err := gone.Ready(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("to a socket that is not there: %v", err)
	}
}
