// Command demo shows what Holdfast does, on real packets and in some seconds:
// a program is attached to an interface, others try to take it off, it is
// replaced under a flood, it ends with its owner or outlives it. Every step is
// followed by its proof.
//
// It needs root, Go and iproute2, and runs in network, mount and process
// namespaces of its own: no interface, file or program of the machine is
// touched, and nothing is left behind, however it ends.
//
// The steps are in story.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/testbed"
)

// dirEnv names the directory with the command and the objects to the part of
// the demo that runs inside.
const dirEnv = "HOLDFAST_DEMO_DIR"

const systemBPFFS = "/sys/fs/bpf"

// timeout is far more than the demo takes, for a machine that hangs.
const timeout = 2 * time.Minute

func main() {
	play := outside
	if !testbed.Outside() {
		play = inside
	}
	code, err := play()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	os.Exit(code)
}

// outside prepares what needs the machine: the command is built and, with the
// objects, put into a temporary directory. The rest happens inside.
func outside() (code int, err error) {
	if os.Getuid() != 0 {
		return 1, errors.New("namespaces and XDP need root: run it as root, as in `sudo make demo`")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return 1, errors.New("the rival, `ip`, is missing: install iproute2")
	}
	dir, err := os.MkdirTemp("", "holdfast-demo-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "holdfast"), "github.com/holdfast-bpf/holdfast/cmd/holdfast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	err = build.Run()
	stop()
	if err != nil {
		return 1, fmt.Errorf("build holdfast: %w", err)
	}
	for _, name := range []string{"filter", "count", "pass"} {
		if err := os.WriteFile(filepath.Join(dir, name+".o"), bpfprog.ELF(name), 0o600); err != nil {
			return 1, err
		}
	}
	os.Setenv(dirEnv, dir)
	_, code, err = testbed.Enter()
	return code, err
}

func inside() (int, error) {
	if in, code, err := testbed.Enter(); !in || err != nil {
		return code, err // this is process 1, and its child is the demo
	}
	// ip makes directories in the system's bpffs, so that gets a double; and
	// Holdfast's own state is where it is by default, in the empty /run.
	if _, err := os.Stat(systemBPFFS); err == nil {
		if err := unix.Mount("bpf", systemBPFFS, "bpf", 0, "mode=0700"); err != nil {
			return 1, fmt.Errorf("mount a bpffs of the demo's own: %w", err)
		}
	}
	os.Unsetenv("HOLDFAST_BPFFS")
	// Before Linux 5.11 programs and maps count as locked memory.
	if err := kernel.RemoveMemlock(); err != nil {
		return 1, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	r := newReport(os.Stdout)
	s, err := newScene(ctx, os.Getenv(dirEnv), r)
	if err != nil {
		return 1, err
	}
	defer s.close()
	r.opening()
	for _, step := range story {
		r.step(step.title)
		if err := step.play(s); err != nil {
			return 1, fmt.Errorf("step %d: %w", r.steps, err)
		}
	}
	if !r.summary() {
		return 1, nil
	}
	return 0, nil
}
