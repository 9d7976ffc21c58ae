package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// The descriptors that the holder inherits.
const (
	holderPID    = 3 // a pidfd of the process that it waits for
	holderParent = 4 // a pipe whose other end ends with the process that started it
	holderDone   = 5 // where it says that the result is printed
)

const done = "done"

// attachWhile attaches for as long as a process lives: a process in the
// background adds the member, holds it, and waits for the other to end.
func (a *app) attachWhile(c *cobra.Command, f *attachFlags, args []string) error {
	// The pidfd is opened first, so that the pid can't come to mean another
	// process. Since Linux 5.3.
	pidfd, err := unix.PidfdOpen(f.whilePID, 0)
	if errors.Is(err, unix.ESRCH) {
		return &xdp.Error{Op: "attach", Hook: args[0], Err: xdp.ErrNotFound, Detail: fmt.Sprintf("no process %d", f.whilePID)}
	}
	if err != nil {
		return fmt.Errorf("--while-pid %d: %w", f.whilePID, err)
	}
	watched := os.NewFile(uintptr(pidfd), "pidfd")
	defer watched.Close()
	// A zombie still has a pid.
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0); n > 0 && err == nil {
		return &xdp.Error{Op: "attach", Hook: args[0], Err: xdp.ErrNotFound, Detail: fmt.Sprintf("process %d has ended", f.whilePID)}
	}
	return a.startHolder(append(sameFlags(c), append([]string{"--"}, args...)...), watched)
}

// sameFlags are the flags that the command was given, for another.
func sameFlags(c *cobra.Command) []string {
	var args []string
	c.Flags().Visit(func(f *pflag.Flag) {
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			args = append(args, "--"+f.Name+"="+v)
		}
	})
	return args
}

// startHolder starts the process that attaches and holds, and waits until it has
// printed the result, or has ended with an error that it has told.
//
// The holder does all of it, so that wherever this process is killed either the
// result was printed and the program stays attached, or neither: a holder that
// finds this process gone before it prints ends.
func (a *app) startHolder(args []string, watched *os.File) error {
	parentOut, parentIn, err := os.Pipe()
	if err != nil {
		return err
	}
	defer parentIn.Close()
	doneOut, doneIn, err := os.Pipe()
	if err != nil {
		return errors.Join(err, parentOut.Close())
	}
	defer doneOut.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{"hold"}, args...)...)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{watched, parentOut, doneIn}
	// A session of its own: the terminal's signals are not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdout, stdoutCopied, err := inheritable(a.env.Stdout)
	if err != nil {
		return errors.Join(err, parentOut.Close(), doneIn.Close())
	}
	stderr, stderrCopied, err := inheritable(a.env.Stderr)
	if err == nil {
		cmd.Stdout, cmd.Stderr = stdout, stderr
		err = closeInheritedOnExec()
	}
	if err == nil {
		err = cmd.Start()
	}
	parentOut.Close()
	doneIn.Close()
	copyErr := errors.Join(stdoutCopied(), stderrCopied())
	if err != nil {
		return fmt.Errorf("start the process that holds the attachment: %w", err)
	}
	word, err := io.ReadAll(doneOut)
	if err == nil && string(word) == done {
		return errors.Join(copyErr, cmd.Process.Release())
	}
	if err := exitStatus(cmd.Wait()); err != nil {
		return err
	}
	return errors.New("the process that holds the attachment ended at once")
}

// inheritable is what a process can inherit to write to w. copied is called once
// it has it, and returns when all that it wrote is in w.
func inheritable(w io.Writer) (f *os.File, copied func() error, err error) {
	if f, ok := w.(*os.File); ok {
		return f, func() error { return nil }, nil
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, func() error { return nil }, err
	}
	result := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, out)
		result <- errors.Join(err, out.Close())
	}()
	return in, func() error {
		in.Close()
		return <-result
	}, nil
}

// closeInheritedOnExec keeps what the caller had open, and left to this process,
// from the holder, which would keep it open for longer: a pipe that somebody
// reads to its end, or a file that is locked.
func closeInheritedOnExec() error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range fds {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > unix.Stderr {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// holdCommand is the process in the background. Whoever kills it detaches.
func (a *app) holdCommand() *cobra.Command {
	var f attachFlags
	c := &cobra.Command{
		Use:    "hold IF OBJ",
		Short:  "Attach an object's program, and hold it until a process ends",
		Hidden: true,
		Args:   exactly("IF", "OBJ"),
		RunE: func(c *cobra.Command, args []string) error {
			for _, fd := range []int{holderPID, holderParent, holderDone} {
				unix.CloseOnExec(fd)
			}
			// It was started through /proc/self/exe, and people look for it
			// by its name.
			if err := os.WriteFile("/proc/self/comm", []byte("holdfast"), 0); err != nil {
				return err
			}
			r, err := f.check(c)
			if err != nil {
				return err
			}
			ns, h, err := f.hook.open(args[0])
			if err != nil {
				return err
			}
			defer ns.Close()
			t, err := f.transaction(h, r, args[1], owned.Held)
			if err != nil {
				return err
			}
			state, err := a.service(c.Context())
			if err != nil {
				return err
			}
			defer state.Close()
			applied, err := a.apply(c.Context(), state, t, &f.object)
			if err != nil {
				return err
			}
			member := applied.Held[0]
			err = a.holdWhile(state, h, applied, member)
			if member.Err() == nil {
				err = errors.Join(err, member.Remove(c.Context(), h))
			}
			return errors.Join(err, member.Close())
		},
	}
	f.add(c)
	return c
}

// holdWhile prints the result and returns when the process has ended that is
// waited for, or the member has.
func (a *app) holdWhile(state arbiter.Service, h *xdp.Hook, applied *arbiter.Applied, member arbiter.Handle) error {
	result, err := a.render(func() error { return a.printOwned(state, h, "attached", len(applied.Before.Members) == 0) })
	if err != nil {
		return err
	}
	if readable(holderParent) {
		return errors.New("the process that started this one ended")
	}
	if _, err := os.Stdout.Write(result); err != nil {
		return err
	}
	// The result is printed, so the program stays attached, whether or not the
	// process that started this one is there to hear it.
	if err := leaveCaller(); err != nil {
		return err
	}
	a.acknowledged(applied)
	ended := make(chan error, 1)
	go func() {
		// A pidfd is readable once its process has ended.
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: holderPID, Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-member.Done():
		return member.Err()
	}
}

// render returns what f prints as a result.
func (a *app) render(f func() error) ([]byte, error) {
	var b bytes.Buffer
	stdout := a.env.Stdout
	a.env.Stdout = &b
	defer func() { a.env.Stdout = stdout }()
	err := f()
	return b.Bytes(), err
}

// readable tells whether the descriptor can be read, or its pipe has come to its
// end.
func readable(fd int32) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: fd, Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// leaveCaller gives up what belongs to the process that started this one, and
// tells it that the result is printed. From then on nobody waits for this process.
func leaveCaller() error {
	// Who reads the output to its end must not wait for the holder.
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		if err := unix.Dup3(int(null.Fd()), int(f.Fd()), 0); err != nil {
			return err
		}
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	word := os.NewFile(holderDone, done)
	defer word.Close()
	_, _ = word.WriteString(done)
	return nil
}
