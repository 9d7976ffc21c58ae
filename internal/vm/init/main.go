// Command init is the first process of a test machine: it makes the guest
// usable, runs the commands of its specification one after another, sends
// their output and exit codes over the second serial line, and powers off.
//
// It is two processes. The one with pid 1 only collects orphans, as tests
// expect of it: a process whose parent was killed must not stay behind as a
// zombie. Its child does the work.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/vm/wire"
)

func main() {
	if os.Getpid() != 1 {
		if err := work(); err != nil {
			fmt.Fprintf(os.Stderr, "init: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if err := supervise(); err != nil {
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintf(os.Stderr, "init: power off: %v\n", err)
	}
	// Ending pid 1 panics the kernel, which ends the machine as well.
}

// supervise mounts what everything else needs, starts the worker and reaps
// until it is gone.
func supervise() error {
	if err := mountAll(); err != nil {
		return err
	}
	worker := exec.Command("/init")
	worker.Stdout, worker.Stderr = os.Stdout, os.Stderr
	if err := worker.Start(); err != nil {
		return fmt.Errorf("start the worker: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the worker: %w", err)
		case pid == worker.Process.Pid && (status.Exited() || status.Signaled()):
			if status.Signaled() || status.ExitStatus() != 0 {
				return fmt.Errorf("the worker ended with status %#x", uint32(status))
			}
			return nil
		}
	}
}

func mountAll() error {
	mounts := []struct {
		fstype, dir, data string
		optional          bool
	}{
		{fstype: "proc", dir: "/proc"},
		{fstype: "sysfs", dir: "/sys"},
		{fstype: "devtmpfs", dir: "/dev"},
		{fstype: "devpts", dir: "/dev/pts", data: "ptmxmode=0666"},
		{fstype: "tmpfs", dir: "/dev/shm", data: "mode=1777"},
		{fstype: "tmpfs", dir: "/tmp", data: "mode=1777"},
		{fstype: "tmpfs", dir: "/run", data: "mode=0755"},
		{fstype: "bpf", dir: "/sys/fs/bpf", data: "mode=0700"},
		{fstype: "cgroup2", dir: "/sys/fs/cgroup"},
		{fstype: "tracefs", dir: "/sys/kernel/tracing", optional: true},
	}
	for _, m := range mounts {
		// Directories of sysfs cannot be made and are there.
		if !strings.HasPrefix(m.dir, "/sys/") {
			if err := os.MkdirAll(m.dir, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.fstype, m.dir, m.fstype, 0, m.data); err != nil && !m.optional {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.dir, err)
		}
	}
	return os.Symlink("/proc/self/fd", "/dev/fd")
}

func work() error {
	line, err := openLine()
	if err != nil {
		return err
	}
	spec, err := prepare()
	if err != nil {
		return err
	}
	release, err := kernelRelease()
	if err != nil {
		return err
	}
	if err := line.send(wire.Frame{Kind: wire.Hello, Payload: []byte(release)}); err != nil {
		return err
	}
	for i, c := range spec.Commands {
		status, err := json.Marshal(run(line, i, c))
		if err != nil {
			return err
		}
		if err := line.send(wire.Frame{Kind: wire.Exit, Command: i, Payload: status}); err != nil {
			return err
		}
	}
	if err := line.send(wire.Frame{Kind: wire.End}); err != nil {
		return err
	}
	return line.drain()
}

// prepare does what the specification wants before the first command.
func prepare() (wire.Spec, error) {
	var spec wire.Spec
	raw, err := os.ReadFile(wire.SpecPath)
	if err != nil {
		return spec, err
	}
	if err := json.Unmarshal(raw, &spec); err != nil {
		return spec, fmt.Errorf("%s: %w", wire.SpecPath, err)
	}
	for _, m := range spec.Modules {
		if err := loadModule(m); err != nil {
			return spec, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Sysctls)) {
		file := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
		if err := os.WriteFile(file, []byte(spec.Sysctls[name]), 0o644); err != nil {
			return spec, fmt.Errorf("sysctl %s=%s: %w", name, spec.Sysctls[name], err)
		}
	}
	return spec, loopbackUp()
}

func loadModule(m wire.Module) error {
	f, err := os.Open(m.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), m.Params, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", m.Path, err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set the loopback device up: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set the loopback device up: %w", err)
	}
	return nil
}

func kernelRelease() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(uts.Release[:]), nil
}

// run runs one command to its end. What the command leaves in its session
// when its time is up is killed with it.
func run(line *serialLine, index int, c wire.Command) wire.Status {
	ctx := context.Background()
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Dir = c.Dir
	cmd.Env = append([]string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "TMPDIR=/tmp", "USER=root"}, c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	// A process that outlives the command may hold its output open.
	cmd.WaitDelay = 2 * time.Second
	cmd.Stdout = &output{line, wire.Stdout, index}
	cmd.Stderr = cmd.Stdout
	if !c.Merge {
		cmd.Stderr = &output{line, wire.Stderr, index}
	}

	start := time.Now()
	err := cmd.Run()
	status := wire.Status{Code: -1, Elapsed: time.Since(start)}
	if cmd.ProcessState == nil {
		status.Error = fmt.Sprintf("start %s: %v", c.Path, err)
		return status
	}
	status.Code = cmd.ProcessState.ExitCode()
	status.TimedOut = ctx.Err() != nil
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		status.Signal = ws.Signal().String()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) && !status.TimedOut {
		status.Error = err.Error()
	}
	return status
}

// serialLine sends frames to the host.
type serialLine struct {
	mu sync.Mutex
	f  *os.File
}

func openLine() (*serialLine, error) {
	f, err := os.OpenFile(wire.Line, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	fd := int(f.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", wire.Line, err)
	}
	// Raw: frames are binary, and nothing is echoed or translated.
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", wire.Line, err)
	}
	return &serialLine{f: f}, nil
}

func (l *serialLine) send(f wire.Frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return wire.WriteFrame(l.f, f)
}

// drain waits until the host has everything: powering off would throw away
// what the driver still holds.
func (l *serialLine) drain() error {
	return unix.IoctlSetInt(int(l.f.Fd()), unix.TCSBRK, 1)
}

// output is one stream of one command.
type output struct {
	line    *serialLine
	kind    wire.Kind
	command int
}

var _ io.Writer = (*output)(nil)

func (o *output) Write(p []byte) (int, error) {
	for piece := range slices.Chunk(p, wire.MaxPayload) {
		if err := o.line.send(wire.Frame{Kind: o.kind, Command: o.command, Payload: piece}); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
