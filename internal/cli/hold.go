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
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// The descriptors that the holder inherits, besides those of program arrays.
const (
	holderLink = 3
	holderPID  = 4
	holderWord = 5
	holderDone = 6
)

// attachWhile attaches for as long as a process lives: a process in the
// background holds the link, and waits for the other to end.
func (a *app) attachWhile(h *xdp.Hook, p *object.Loaded, name string, pid int) error {
	// The pidfd is opened first, so that the pid can't come to mean another
	// process. Since Linux 5.3.
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return &xdp.Error{Op: "attach", Hook: h.String(), Err: xdp.ErrNotFound, Detail: fmt.Sprintf("no process %d", pid)}
	}
	if err != nil {
		return fmt.Errorf("--while-pid %d: %w", pid, err)
	}
	watched := os.NewFile(uintptr(pidfd), "pidfd")
	defer watched.Close()
	// A zombie still has a pid.
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0); n > 0 && err == nil {
		return &xdp.Error{Op: "attach", Hook: h.String(), Err: xdp.ErrNotFound, Detail: fmt.Sprintf("process %d has ended", pid)}
	}
	link, err := a.attachHeld(h, p)
	if err != nil {
		return err
	}
	defer link.Close() // the holder has its own
	holder, err := startHolder(a.env.Stdout, link, p, watched, name, pid)
	if err != nil {
		return fmt.Errorf("start the process that holds the attachment: %w", err)
	}
	defer holder.close()
	state, err := a.look()
	if err != nil {
		return err
	}
	defer state.Close()
	result, err := a.render(func() error { return a.printAt(state, h, p, "attached", true) })
	if err != nil {
		return err
	}
	return holder.handOver(result)
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

// holder is a process that has the link and waits for what to print. It prints
// the result itself, so that wherever this process is killed either the result
// was printed and the program stays attached, or neither: a holder that hears
// nothing ends.
type holder struct {
	cmd        *exec.Cmd
	stdout     io.Writer
	word, done *os.File
}

func startHolder(stdout io.Writer, link *xdp.Link, p *object.Loaded, watched *os.File, name string, pid int) (*holder, error) {
	var inherited []*os.File // which are the holder's own once it runs
	defer func() {
		for _, f := range inherited {
			f.Close()
		}
	}()
	wordOut, wordIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	inherited = append(inherited, wordOut)
	doneOut, doneIn, err := os.Pipe()
	if err != nil {
		wordIn.Close()
		return nil, err
	}
	inherited = append(inherited, doneIn)
	h := &holder{stdout: stdout, word: wordIn, done: doneOut}
	fds := []int{link.FD()}
	for _, array := range p.ProgramArrays() {
		fds = append(fds, p.Maps[array].FD())
	}
	var objects []*os.File
	for _, fd := range fds {
		dup, err := kernel.FD(fd).Dup()
		if err != nil {
			h.close()
			return nil, err
		}
		f := os.NewFile(uintptr(dup), "bpf")
		inherited, objects = append(inherited, f), append(objects, f)
	}
	h.cmd = exec.Command("/proc/self/exe", "hold", "--pid", strconv.Itoa(pid), "--name", name)
	h.cmd.Args[0] = os.Args[0]
	if f, ok := stdout.(*os.File); ok {
		h.cmd.Stdout = f
	}
	h.cmd.ExtraFiles = append([]*os.File{objects[0], watched, wordOut, doneIn}, objects[1:]...)
	// A session of its own: the terminal's signals are not for it.
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	h.cmd.Dir = "/"
	err = closeInheritedOnExec()
	if err == nil {
		err = h.cmd.Start()
	}
	if err != nil {
		h.close()
		return nil, err
	}
	return h, nil
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

// handOver has the holder print the result, and hold on.
func (h *holder) handOver(result []byte) error {
	// One write into an empty pipe, which takes all of it or nothing.
	_, writeErr := h.word.Write(result)
	h.word.Close()
	if b, err := io.ReadAll(h.done); err != nil || string(b) != "done" {
		return fmt.Errorf("the process that holds the attachment ended at once: %w", errors.Join(writeErr, err, h.cmd.Wait()))
	}
	if h.cmd.Stdout == nil { // no file, so it could not be inherited
		if _, err := h.stdout.Write(result); err != nil {
			return err
		}
	}
	return h.cmd.Process.Release()
}

// close ends a holder that was not told to hold on.
func (h *holder) close() {
	h.word.Close()
	h.done.Close()
}

// holdCommand is the process in the background. Whoever kills it detaches.
func (a *app) holdCommand() *cobra.Command {
	var name string
	var pid int
	c := &cobra.Command{
		Use:    "hold",
		Short:  "Hold a link that was inherited, until a process ends",
		Hidden: true,
		Args:   exactly(),
		RunE: func(*cobra.Command, []string) error {
			link, err := xdp.Adopt(holderLink)
			if err != nil {
				return err
			}
			defer link.Close()
			unix.CloseOnExec(holderPID)
			// It was started through /proc/self/exe, and people look for it
			// by its name.
			if err := os.WriteFile("/proc/self/comm", []byte("holdfast"), 0); err != nil {
				return err
			}
			if err := printWord(); err != nil {
				return err
			}
			// A pidfd is readable once its process has ended.
			for {
				_, err := unix.Poll([]unix.PollFd{{Fd: holderPID, Events: unix.POLLIN}}, -1)
				if !errors.Is(err, unix.EINTR) {
					return err
				}
			}
		},
	}
	c.Flags().IntVar(&pid, "pid", 0, "the process that is waited for, to be seen in ps")
	c.Flags().StringVar(&name, "name", "", "the attachment's name, to be seen in ps")
	return c
}

// printWord prints what the process that started this one wants to be printed,
// and says so. From then on nobody waits for this process.
func printWord() error {
	word := os.NewFile(holderWord, "word")
	result, err := io.ReadAll(word)
	if err != nil {
		return err
	}
	if len(result) == 0 {
		return errors.New("the process that started this one ended")
	}
	word.Close()
	if _, err := os.Stdout.Write(result); err != nil {
		return err
	}
	// Who reads the output to its end must not wait for the holder.
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	if err := unix.Dup3(int(null.Fd()), int(os.Stdout.Fd()), 0); err != nil {
		return err
	}
	// The result is printed, so the program stays attached, whether or not the
	// process that started this one is there to hear it.
	done := os.NewFile(holderDone, "done")
	defer done.Close()
	_, _ = done.WriteString("done")
	return nil
}
