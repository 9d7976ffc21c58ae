package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Notifier tells systemd how the service is. The zero value tells nobody, without
// an error. It is safe for use by several goroutines.
type Notifier struct{ socket string }

// Enabled tells whether anybody is told.
func (n Notifier) Enabled() bool { return n.socket != "" }

// Ready says that the service has started, or has read its configuration again.
func (n Notifier) Ready() error { return n.send("READY=1") }

// Reloading says that the service reads its configuration; Ready must follow.
func (n Notifier) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	// Type=notify-reload wants to know which of several this is.
	return n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

// Stopping says that the service ends.
func (n Notifier) Stopping() error { return n.send("STOPPING=1") }

// Status says in one line what the service does, for `systemctl status`.
func (n Notifier) Status(text string) error {
	return n.send("STATUS=" + strings.Join(strings.Fields(text), " "))
}

// Watching says that the service is not stuck, see [Service.Watchdog].
func (n Notifier) Watching() error { return n.send("WATCHDOG=1") }

// maxFiles is how many descriptors a message can have, SCM_MAX_FD.
const maxFiles = 253

// Store gives systemd descriptors to keep, which the next start of the service gets
// by that name, however this one ends. The files stay the caller's. That systemd
// has them is sure only after Barrier, and it has them only where the unit allows
// so many (FileDescriptorStoreMax).
func (n Notifier) Store(name string, files ...*os.File) error {
	if err := checkName(name); err != nil {
		return err
	}
	for len(files) > 0 {
		some := files[:min(len(files), maxFiles)]
		files = files[len(some):]
		// Without FDPOLL systemd would close them by itself at an EPOLLHUP.
		if err := n.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, some...); err != nil {
			return err
		}
	}
	return nil
}

// Remove has systemd close all descriptors that were stored by that name.
func (n Notifier) Remove(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return n.send("FDSTOREREMOVE=1\nFDNAME=" + name)
}

// checkName refuses what systemd does: fdname_is_valid in its fd-util.c.
func checkName(name string) error {
	valid := name != "" && len(name) <= 255 && strings.IndexFunc(name, func(r rune) bool {
		return r < ' ' || r >= 127 || r == ':'
	}) < 0
	if !valid {
		return fmt.Errorf("a descriptor can't be stored by the name %q: it has 1 to 255 printable ASCII characters, and no colon", name)
	}
	return nil
}

// Barrier waits until systemd has read all that it was told before. What it is told
// by a process that has ended meanwhile it may not believe, so a process that ends
// waits first.
func (n Notifier) Barrier(ctx context.Context) error {
	if !n.Enabled() {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = n.send("BARRIER=1", w)
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// The end comes when systemd closes the descriptor, which it does not write to.
	if _, err := r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("wait for systemd: %w", context.Cause(ctx))
	}
	return nil
}

// patience is for how long systemd may not read, in seconds. It is process 1: with
// its socket full a service must not hang because of that.
const patience = 10

func (n Notifier) send(message string, files ...*os.File) error {
	if !n.Enabled() {
		return nil
	}
	// Package net sends no descriptors from a datagram socket that is connected.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("tell systemd: %w", os.NewSyscallError("socket", err))
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: patience}); err != nil {
		return fmt.Errorf("tell systemd: %w", os.NewSyscallError("setsockopt", err))
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(fd, []byte(message), rights, &unix.SockaddrUnix{Name: n.socket}, unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("tell systemd at %s: %w", n.socket, os.NewSyscallError("sendmsg", err))
		}
		runtime.KeepAlive(files)
		return nil
	}
}
