// Package vm runs commands on other kernels: it boots one of Debian's
// kernels in QEMU with an initramfs made for the occasion, runs the commands
// there as root, and returns their output and exit codes.
//
//	result, err := vm.Run(ctx, vm.Config{
//		Kernel:   "6.1",
//		Files:    []vm.File{{Guest: "/bin/xdp.test", Host: "xdp.test"}},
//		Commands: []vm.Command{{Path: "/bin/xdp.test", Args: []string{"-test.v"}, Stdout: os.Stdout}},
//		Timeout:  time.Minute,
//	})
//
// Commands must be static binaries, or bring what they need (see [Program]).
// The guest has proc, sysfs, devtmpfs, bpffs, cgroup2 and tmpfs mounted, its
// loopback device up, and the drivers of the usual virtual network devices
// loaded; it has no shell and no tools. It needs qemu-system-x86_64 on the
// host, and no privilege.
package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/vm/wire"
)

// Config says what to run, and on what machine.
type Config struct {
	Kernel   string    // entry of the matrix, see Kernels
	Commands []Command // run one after another
	Files    []File    // put into the guest
	Modules  []string  // kernel modules to load beside those of the usual network devices
	// Sysctls are set before the first command, by dotted name, such as
	// "net.core.bpf_jit_enable": "0".
	Sysctls map[string]string
	// Timeout for the whole machine, boot included; 0 means 5 minutes.
	Timeout time.Duration
	// ICount makes the guest's clock count instructions: one nanosecond
	// each. Run times become exact and repeatable, and the machine slower.
	ICount    bool
	MemoryMiB int       // 0 means 2048
	CPUs      int       // 0 means 2
	Console   io.Writer // also gets the kernel's console as it comes; nil for nobody
	// Logf gets what takes time (downloads); nil for nobody.
	Logf func(format string, args ...any)
}

// Command is one program to run in the guest. If Stdout and Stderr are the
// same writer, the guest writes both into one pipe, so their order is kept.
type Command struct {
	Path    string   // absolute, in the guest
	Args    []string // without the program's own name
	Env     []string // "NAME=value", beside PATH, HOME, USER and TMPDIR
	Dir     string   // working directory in the guest; empty means /
	Timeout time.Duration
	Stdout  io.Writer // nil for nobody
	Stderr  io.Writer // nil for nobody
	// Done is called when the command has ended and all its output is
	// written; nil for nobody. It is not called if the machine fails first.
	Done func(Status)
}

// File is a file of the guest.
type File struct {
	Guest   string // absolute path in the guest
	Host    string // where its content comes from, unless Content is set
	Content []byte
	Mode    os.FileMode // permissions; 0 means those of Host, or 0644 for Content
}

// Status is how a command ended.
type Status = wire.Status

// Result is what a machine did that booted, ran and powered off.
type Result struct {
	Release  string   // the guest's uname -r
	Statuses []Status // one for each command
	Console  []byte   // all that the kernel printed
	Elapsed  time.Duration
}

// CrashError means that the machine did not come to its end: the kernel
// panicked, time was up, or the guest stopped reporting.
type CrashError struct {
	Kernel  string
	Reason  string
	Console []byte // all that the kernel printed
}

// Error holds the reason and the end of the console.
func (e *CrashError) Error() string {
	const lines = 80
	console := bytes.Split(bytes.TrimSpace(e.Console), []byte("\n"))
	left := ""
	if len(console) > lines {
		left = fmt.Sprintf(", last %d of %d lines", lines, len(console))
		console = console[len(console)-lines:]
	}
	return fmt.Sprintf("kernel %s: %s (console%s:)\n%s", e.Kernel, e.Reason, left, bytes.Join(console, []byte("\n")))
}

// Run boots a machine, runs the commands and returns when it has powered
// off. A command that fails is not an error of Run: its Status says so. When
// the machine itself fails the error is a *CrashError, and the Result holds
// what was known by then; a command without a result has Code -1 and Error
// set.
func Run(ctx context.Context, cfg Config) (Result, error) {
	cfg.setDefaults()
	image, err := Fetch(ctx, cfg.Kernel, cfg.Logf)
	if err != nil {
		return Result{}, err
	}
	dir, err := os.MkdirTemp("", "holdfast-vm-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)
	initrd := filepath.Join(dir, "initramfs")
	if err := writeInitramfs(ctx, initrd, image, cfg); err != nil {
		return Result{}, err
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	result, err := boot(ctx, image, initrd, cfg)
	result.Elapsed = time.Since(start)
	return result, err
}

func (c *Config) setDefaults() {
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Minute
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 2048
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
}

func (c *Config) wireCommands() []wire.Command {
	var list []wire.Command
	for _, cmd := range c.Commands {
		list = append(list, wire.Command{
			Path: cmd.Path, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir, Timeout: cmd.Timeout,
			Merge: cmd.Stdout != nil && cmd.Stdout == cmd.Stderr,
		})
	}
	return list
}

// follow reads the guest's frames to their end and hands output on.
func follow(line io.Reader, commands []Command) (*wire.Transcript, error) {
	t := wire.NewTranscript(len(commands))
	for {
		f, err := wire.ReadFrame(line)
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, err
		}
		if err := t.Add(f); err != nil {
			return t, err
		}
		var w io.Writer
		switch f.Kind {
		case wire.Stdout:
			w = commands[f.Command].Stdout
		case wire.Stderr:
			w = commands[f.Command].Stderr
		case wire.Exit:
			if done := commands[f.Command].Done; done != nil {
				done(*t.Statuses[f.Command])
			}
		}
		if w != nil {
			if _, err := w.Write(f.Payload); err != nil {
				return t, fmt.Errorf("output of %s: %w", commands[f.Command].Path, err)
			}
		}
	}
}

// statuses fills in what the guest could not report.
func statuses(t *wire.Transcript) []Status {
	list := make([]Status, len(t.Statuses))
	for i, s := range t.Statuses {
		if s == nil {
			s = &Status{Code: -1, Error: "no result: the machine stopped first"}
		}
		list[i] = *s
	}
	return list
}

// panicLine finds the kernel's own words for its end.
func panicLine(console []byte) string {
	for line := range bytes.Lines(console) {
		if i := bytes.Index(line, []byte("Kernel panic - ")); i >= 0 {
			return strings.TrimSpace(string(line[i:]))
		}
	}
	return ""
}
