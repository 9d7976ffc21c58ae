package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/procfs"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) runCommand() *cobra.Command {
	var hf hookFlags
	var of objectFlags
	var mf memberFlags
	var owf ownedFlags
	c := &cobra.Command{
		Use:   "run IF OBJ -- CMD [ARG...]",
		Short: "Attach a program for as long as a command runs",
		Long: `Attach an XDP program, run a command, and detach the program when the command
ends, however it ends. If holdfast itself is killed, by SIGKILL too, the program
is gone and the command gets a SIGTERM. Signals are passed on, and the command's
exit code is that of holdfast (128 and the signal's number if a signal ended it).
Should the program be taken off before, by another root or with its interface,
holdfast says so at the end, with exit code 3 where the command's own was 0.

The program becomes a member of the hook's chain, as with 'holdfast attach'.`,
		Example: `  holdfast run eth0 sample.o -- ./collector --interval 10s`,
		Args: func(c *cobra.Command, args []string) error {
			dash := c.ArgsLenAtDash()
			switch {
			case dash < 0:
				return usagef("`--` and a command are missing")
			case dash != 2:
				return exactly("IF", "OBJ")(c, args[:dash])
			case len(args) == dash:
				return usagef("the command after `--` is missing")
			}
			return nil
		},
		ValidArgsFunction: completeHook,
		RunE: func(c *cobra.Command, args []string) error {
			engine, err := owf.check()
			if err != nil {
				return err
			}
			place, err := mf.settings(c)
			if err != nil {
				return err
			}
			ns, h, err := hf.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			path, err := exec.LookPath(args[2])
			if err != nil {
				return fmt.Errorf("find the command: %w; nothing was attached", err)
			}
			change, err := owf.addition(h, &of, place, args[1], owned.Held)
			if err != nil {
				return err
			}
			state, err := a.service(c.Context())
			if err != nil {
				return err
			}
			defer state.Close()
			applied, err := a.apply(c.Context(), state, arbiter.Transaction{Hook: h, Changes: []arbiter.Change{change}, Engine: engine, Stats: owf.counting()}, &of)
			if err != nil {
				return err
			}
			member := applied.Held[0]
			s, err := a.ownedAt(state, h, "attached")
			if err != nil {
				return errors.Join(err, member.Close())
			}
			if len(applied.Before.Members) == 0 {
				a.tellGeneric(h, s.Mode)
			}
			a.log.Info("attached", "name", member.Name(), "interface", h.Name(), "mode", s.Mode.String(), "program", s.Program.ID, "link", s.LinkID)
			a.acknowledged(applied)
			err = a.command(path, args[2:])
			// At once, and not when the kernel comes round to the last
			// descriptor: who waits for holdfast finds the hook empty.
			removeErr := errors.Join(removeHeld(state, h, member, s.LinkID), member.Close())
			if err != nil && removeErr != nil {
				// The exit code is the command's, which says nothing of this.
				a.log.Warn("the program was not attached to the end", "error", removeErr)
			}
			return errors.Join(err, removeErr)
		},
	}
	hf.add(c)
	of.add(c)
	mf.add(c)
	owf.add(c)
	return c
}

// removeHeld takes the member out of its chain. The error is xdp.ErrGone where it
// has not been there to the end.
func removeHeld(state arbiter.Service, h *xdp.Hook, member arbiter.Handle, linkID uint32) error {
	if err := member.Err(); err != nil {
		return err
	}
	gone := &xdp.Error{Op: "hold", Hook: fmt.Sprintf("member %q of %s", member.Name(), h), Err: xdp.ErrGone, Hint: "attach it anew"}
	s, err := state.At(h)
	switch {
	case errors.Is(err, xdp.ErrNotFound):
		// The interface went to another namespace, or is gone.
		if link, err := xdp.OpenID(linkID); err == nil {
			defer link.Close()
			if info, err := link.Info(); err == nil && !info.Defunct() {
				return nil // and so does the member, when it is closed
			}
		}
		gone.Detail = "its interface is gone"
		return gone
	case err != nil:
		return err
	case s == nil || s.LinkID != linkID:
		gone.Detail = "somebody detached it by force"
		return gone
	case s.Chain == nil || !holds(findMember(s.Chain, member.Name())):
		gone.Detail = "somebody took it out of the chain"
		return gone
	}
	return member.Remove(context.Background(), h)
}

// holds tells whether the member is one that this process holds.
func holds(m *arbiter.MemberStatus) bool {
	return m != nil && m.Lifetime == owned.Held && m.Owner.PID == os.Getpid()
}

// command runs the command to its end and returns its exit code as an error.
func (a *app) command(path string, args []string) error {
	// The kernel sends the parent-death signal when the thread ends that
	// started the child, so the thread has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals, stop := signals()
	defer stop()
	cmd := exec.Command(path)
	cmd.Args = args
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.env.Stdin, a.env.Stdout, a.env.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the command: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for stopping := false; ; {
		select {
		case s := <-signals:
			if passOn(s) {
				_ = cmd.Process.Signal(s) // it may have ended meanwhile
			}
			// The shell goes on when all of its job has stopped, and whether
			// the command stops is its own choice. The program stays attached.
			// Signals may come in another order than they were sent.
			stopping = stopping || stops(s)
			if stopping && procfs.Stopped(cmd.Process.Pid) {
				stopping = false
				_ = unix.Kill(unix.Getpid(), unix.SIGSTOP)
			}
		case err := <-done:
			return exitStatus(err)
		}
	}
}

// passOn tells whether the command should get a signal that holdfast got.
func passOn(s os.Signal) bool {
	switch s {
	case unix.SIGCHLD, unix.SIGPIPE:
		return false // holdfast's own: its child, its output
	case unix.SIGINT, unix.SIGQUIT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGCONT:
		// From the terminal, and from the shell that continues a job, the
		// whole foreground process group has it.
		return !inForeground()
	}
	return true
}

// stops tells whether a signal stops a process that does not catch it.
func stops(s os.Signal) bool {
	return s == unix.SIGTSTP || s == unix.SIGTTIN || s == unix.SIGTTOU
}

func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	// The terminal may be of another process namespace, where both are 0.
	return err == nil && group > 0 && group == unix.Getpgrp()
}

func exitStatus(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	code := exit.ExitCode()
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	return &statusError{code}
}
