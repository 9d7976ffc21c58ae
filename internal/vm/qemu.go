package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/vm/wire"
)

const qemu = "qemu-system-x86_64"

// qemuArgs is the machine: its console on the first serial line, the
// guest's frames on the second, both to descriptors that QEMU inherits.
func qemuArgs(image *Image, initrd string, cfg Config, consoleFD, lineFD int) []string {
	cpu := "max,-cx16"
	if cfg.ICount {
		// What fills memory byte by byte, with rep stosb, would count each.
		cpu += ",-erms,-fsrm"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
		// One thread for all processors: with one each, a kernel that patches
		// its code while another processor runs it oopsed at boot now and then.
		"-accel", "tcg,thread=single",
		// Without cmpxchg16b: under TCG, 6.12 double-faults in it at random.
		"-cpu", cpu,
		"-smp", strconv.Itoa(cfg.CPUs),
		"-m", strconv.Itoa(cfg.MemoryMiB),
		"-kernel", image.Vmlinuz,
		"-initrd", initrd,
		// A panic or an oops ends the machine at once (panic=-1 reboots,
		// -no-reboot exits). The console stays quiet up to warnings.
		// no_timer_check: on a busy host the check for a working timer can
		// run out of time, and panics.
		"-append", "console=ttyS0 panic=-1 oops=panic loglevel=5 random.trust_cpu=on no_timer_check",
	}
	for i, fd := range []int{consoleFD, lineFD} {
		id := "serial" + strconv.Itoa(i)
		args = append(args,
			"-chardev", fmt.Sprintf("file,id=%s,path=/dev/fd/%d", id, fd),
			"-serial", "chardev:"+id)
	}
	if cfg.ICount {
		args = append(args, "-icount", "shift=0")
	}
	return args
}

// boot runs the machine to its end.
func boot(ctx context.Context, image *Image, initrd string, cfg Config) (Result, error) {
	consoleR, consoleW, err := os.Pipe()
	if err != nil {
		return Result{}, err
	}
	defer consoleR.Close()
	lineR, lineW, err := os.Pipe()
	if err != nil {
		consoleW.Close()
		return Result{}, err
	}
	defer lineR.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, qemu, qemuArgs(image, initrd, cfg, 3, 4)...)
	cmd.ExtraFiles = []*os.File{consoleW, lineW} // 3 and 4
	cmd.Stderr = &complaint
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Start()
	consoleW.Close()
	lineW.Close()
	if errors.Is(err, exec.ErrNotFound) {
		return Result{}, fmt.Errorf("%w: install QEMU (scripts/deps does)", err)
	}
	if err != nil {
		return Result{}, err
	}

	var console bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() {
		var w io.Writer = &console
		if cfg.Console != nil {
			w = io.MultiWriter(&console, cfg.Console)
		}
		if _, err := io.Copy(w, consoleR); err != nil {
			cancel(fmt.Errorf("console: %w", err))
		}
	})
	transcript, lineErr := follow(lineR, cfg.Commands)
	if lineErr != nil {
		cancel(lineErr)
	}
	// Whatever is left must be read, or QEMU would wait for a reader.
	_, _ = io.Copy(io.Discard, lineR)
	wg.Wait()
	waitErr := cmd.Wait()

	result := Result{Release: transcript.Release, Statuses: statuses(transcript), Console: console.Bytes()}
	if reason := crashReason(ctx, cfg, transcript, console.Bytes(), lineErr, waitErr, complaint.String()); reason != "" {
		return result, &CrashError{Kernel: image.Name, Reason: reason, Console: console.Bytes()}
	}
	return result, nil
}

// crashReason says why the machine did not end well, or nothing if it did.
// The guest's end mark alone is not enough: a kernel may panic on its way
// down.
func crashReason(ctx context.Context, cfg Config, t *wire.Transcript, console []byte, lineErr, waitErr error, complaint string) string {
	switch panicked := panicLine(console); {
	case panicked != "":
		return panicked
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Sprintf("not done after %s, killed", cfg.Timeout)
	case lineErr != nil && errors.Is(context.Cause(ctx), lineErr):
		// Not where the machine was stopped in the middle of a frame.
		return lineErr.Error()
	case ctx.Err() != nil:
		return fmt.Sprintf("stopped: %v", context.Cause(ctx))
	case waitErr != nil:
		return fmt.Sprintf("QEMU: %v: %s", waitErr, strings.TrimSpace(complaint))
	case t.Release == "":
		return "the machine ended before the guest reported anything"
	case !t.Ended:
		return "the machine ended without the guest's end mark"
	}
	return ""
}
