// Package systemd is how a service speaks with systemd, or with whatever else
// starts services in that way: it gets its sockets and the descriptors that it
// stored before, and tells how it is. Where nothing of this kind started the
// process there are no descriptors, and what it tells goes nowhere.
//
// The protocols are those of sd_listen_fds(3), sd_notify(3) and
// sd_watchdog_enabled(3).
package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Service is what the process was started with.
type Service struct {
	Notifier
	// Descriptors are those that came with the start: sockets, and what was stored.
	Descriptors []Descriptor
	// Watchdog is after how long without [Notifier.Watching] the process is taken
	// to be stuck; 0 where nobody watches. Half of it is a good interval.
	Watchdog time.Duration
}

// Descriptor is a descriptor that came with the start, with the name that the
// socket's unit gives it (FileDescriptorName), or that it was stored by.
type Descriptor struct {
	Name string
	*os.File
}

// firstFD is the number of the first descriptor, SD_LISTEN_FDS_START.
const firstFD = 3

// variables are what the environment has for this process and no other.
var variables = []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"}

// Start reads what the process was started with, once: it takes that out of the
// environment, and out of what a process that it starts inherits. The caller closes
// the descriptors. It is an error where the environment contradicts itself.
func Start() (*Service, error) {
	started, err := parse(os.Getenv, os.Getpid())
	for _, name := range variables {
		os.Unsetenv(name)
	}
	if err != nil {
		return nil, fmt.Errorf("what systemd says in the environment: %w", err)
	}
	s := &Service{Notifier: Notifier{started.notify}, Watchdog: started.watchdog}
	for n, name := range started.names {
		fd := firstFD + n
		// A number that is no descriptor may become another's at any time.
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, errors.Join(fmt.Errorf("descriptor %d (%s), which systemd says it has passed: %w", fd, name, err), s.Close())
		}
		s.Descriptors = append(s.Descriptors, Descriptor{name, os.NewFile(uintptr(fd), name)})
	}
	return s, nil
}

// Close closes the descriptors that are left.
func (s *Service) Close() error {
	var errs []error
	for _, d := range s.Descriptors {
		if err := d.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// environment is what the variables say.
type environment struct {
	names    []string // of the descriptors, in order
	notify   string
	watchdog time.Duration
}

// maxDescriptors is far above what a service can have, see FileDescriptorStoreMax.
const maxDescriptors = 1 << 20

func parse(getenv func(string) string, pid int) (environment, error) {
	e := environment{notify: getenv("NOTIFY_SOCKET")}
	if e.notify != "" && e.notify[0] != '/' && e.notify[0] != '@' {
		return e, fmt.Errorf("NOTIFY_SOCKET=%q is neither a path nor an abstract name", e.notify)
	}
	if usec := getenv("WATCHDOG_USEC"); usec != "" && isFor(getenv("WATCHDOG_PID"), pid, true) {
		n, err := strconv.ParseInt(usec, 10, 64)
		if err != nil || n <= 0 || n > int64(time.Duration(1<<63-1)/time.Microsecond) {
			return e, fmt.Errorf("WATCHDOG_USEC=%q is no time", usec)
		}
		e.watchdog = time.Duration(n) * time.Microsecond
	}
	fds := getenv("LISTEN_FDS")
	if fds == "" || !isFor(getenv("LISTEN_PID"), pid, false) {
		return e, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxDescriptors {
		return e, fmt.Errorf("LISTEN_FDS=%q is no number of descriptors", fds)
	}
	e.names = make([]string, n)
	if names := getenv("LISTEN_FDNAMES"); names != "" {
		if e.names = strings.Split(names, ":"); len(e.names) != n {
			return e, fmt.Errorf("there are %d descriptors and %d names: LISTEN_FDNAMES=%q", n, len(e.names), names)
		}
	}
	return e, nil
}

// isFor tells whether a variable names this process. Others inherit it from the one
// that it was meant for.
func isFor(variable string, pid int, orUnset bool) bool {
	if variable == "" {
		return orUnset
	}
	return variable == strconv.Itoa(pid)
}

// Listener makes a listener of a socket, and takes over the descriptor, also where
// it fails because that is something else than a listening Unix stream socket. The
// socket's file stays when the listener is closed: it is systemd's.
func (d Descriptor) Listener() (*net.UnixListener, error) {
	defer d.Close()
	for _, option := range []struct {
		name      int
		want      int
		otherwise string
	}{
		{unix.SO_DOMAIN, unix.AF_UNIX, "it is a socket of another family than Unix"},
		{unix.SO_TYPE, unix.SOCK_STREAM, "it is no stream socket"},
		{unix.SO_ACCEPTCONN, 1, "it does not listen"},
	} {
		got, err := unix.GetsockoptInt(int(d.Fd()), unix.SOL_SOCKET, option.name)
		switch {
		case err != nil:
			return nil, fmt.Errorf("descriptor %q that systemd passed: it is no socket: %w", d.Name, err)
		case got != option.want:
			return nil, fmt.Errorf("descriptor %q that systemd passed: %s; the unit should have ListenStream= with a path", d.Name, option.otherwise)
		}
	}
	l, err := net.FileListener(d.File)
	if err != nil {
		return nil, fmt.Errorf("descriptor %q that systemd passed: %w", d.Name, err)
	}
	return l.(*net.UnixListener), nil
}
