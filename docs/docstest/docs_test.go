// Package docstest does what the documents say: the blocks of commands of the
// tutorial and of the how-to pages are run, in order, and print what the pages
// show. CONTRIBUTING.md says how a page is written for it.
package docstest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/docs"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/cli"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/testbed"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{
		"page":     page,
		"holdfast": func([]string) int { return cli.Main(cli.SystemEnv()) },
	})
}

// readme is beside the others, and so comes with the test's own files.
const readme = "README.md"

func TestWhatThePagesSayIsDone(t *testing.T) {
	// In a virtual machine all takes many times as long: each of them does some of the
	// how-to pages, and together they do them all.
	sample := kerneltest.OneOf(3)
	for i, name := range append(docs.Run(), readme) {
		if name != "tutorial.md" && !sample.Takes(i) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			// The pages are about a machine, so each has one of its own: see page.
			cmd := kerneltest.Command("page", t.TempDir(), name)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

// page runs the commands of one page in namespaces of their own, and returns the
// exit code.
func page(args []string) int {
	dir, name := args[0], args[1]
	inside, code, err := testbed.Enter()
	if err == nil && !inside {
		return code
	}
	if err == nil {
		err = follow(dir, name)
	}
	if err != nil {
		fmt.Printf("docs/%s: %v\n", name, err)
		return 1
	}
	return 0
}

// follow does what the page says.
func follow(dir, name string) error {
	files := fs.FS(docs.Files)
	if name == readme {
		files = os.DirFS("testdata")
	}
	text, err := fs.ReadFile(files, name)
	if err != nil {
		return err
	}
	steps, err := docs.Steps(string(text))
	if err != nil {
		return err
	}
	if err := furnish(dir); err != nil {
		return fmt.Errorf("prepare the machine: %w", err)
	}
	sh, err := startShell(dir)
	if err != nil {
		return err
	}
	defer sh.end()
	ran, left := 0, 0
	var others []error // what was printed is not what the page shows
	for _, step := range steps {
		if step.NotRun != "" {
			left++
			continue
		}
		if step.Where != "" {
			if _, err := sh.do(docs.Step{Code: "if " + step.Where + "; then :; else (exit 1); fi\n", Exit: 1}); err == nil {
				left++
				continue
			}
		}
		run := sh.do
		if step.Until != "" {
			run = sh.serve
		}
		printed, err := run(step)
		if err != nil {
			return errors.Join(append(others, fmt.Errorf("line %d: %w\n%s\nit printed\n%s", step.Line, err, step.Code, printed))...)
		}
		if step.Output != nil && !docs.Matches(*step.Output, printed) {
			others = append(others, fmt.Errorf("line %d:\n%s\nprinted\n%s\nand the page shows\n%s", step.Line, step.Code, printed, *step.Output))
		}
		ran++
	}
	if len(others) > 0 {
		return errors.Join(others...)
	}
	fmt.Printf("%d blocks ran, %d can't be run\n", ran, left)
	return nil
}

// furnish makes of the machine what the pages expect: a clone of the repository in
// dir, as far as they use it, with the command in bin, and a bpffs where everybody's
// is.
func furnish(dir string) error {
	const bpffs = "/sys/fs/bpf"
	if err := unix.Mount("bpf", bpffs, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a bpffs on %s: %w", bpffs, err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	objects := filepath.Join(dir, "internal/bpfprog")
	bin := filepath.Join(dir, "bin")
	for _, d := range []string{objects, bin} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for _, name := range bpfprog.Names() {
		if err := os.WriteFile(filepath.Join(objects, name+"_bpfel.o"), bpfprog.ELF(name), 0o644); err != nil {
			return err
		}
	}
	return os.Symlink(self, filepath.Join(bin, "holdfast"))
}

// shell is one shell, in which a page is done from the first step to the last.
type shell struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	dir  string
	done int // steps
}

// mark is in the line after what a step printed, with the exit code.
const mark = "-- that was the step; exit code "

func startShell(dir string) (*shell, error) {
	cmd := exec.Command("sh")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(),
		"PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "LC_ALL=C", kerneltest.CommandEnv("holdfast"))
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, err
	}
	return &shell{cmd: cmd, in: in, out: bufio.NewReader(r), dir: dir}, nil
}

// end ends the shell; its children end with the namespaces.
func (s *shell) end() {
	s.in.Close()
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// serve runs a step that runs until it is stopped, and stops it when it has done its
// work. It has a shell of its own.
func (s *shell) serve(step docs.Step) (printed string, err error) {
	s.done++
	out, err := os.Create(filepath.Join(s.dir, fmt.Sprintf("step%d.out", s.done)))
	if err != nil {
		return "", err
	}
	defer out.Close()
	cmd := exec.Command("sh", "-c", step.Code)
	cmd.Dir, cmd.Env = s.dir, s.cmd.Env
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// What it started has to end as well.
	stop := func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	read := func() string {
		b, _ := os.ReadFile(out.Name())
		return string(b)
	}
	for {
		select {
		case err := <-ended:
			return read(), errors.Join(errors.New("it ended by itself"), err)
		default:
		}
		ask := exec.Command("sh", "-c", step.Until)
		ask.Dir, ask.Env = s.dir, append(s.cmd.Env, "OUT="+out.Name())
		if ask.Run() == nil {
			stop()
			<-ended
			return read(), nil
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}

// do runs one step, and returns what it printed. Each of its commands has to
// succeed, but the last one of a step that is to fail.
func (s *shell) do(step docs.Step) (printed string, err error) {
	s.done++
	file := filepath.Join(s.dir, fmt.Sprintf("step%d.sh", s.done))
	if err := os.WriteFile(file, []byte(step.Code), 0o644); err != nil {
		return "", err
	}
	strict := "set -e"
	if step.Exit != 0 {
		strict = "set +e"
	}
	fmt.Fprintf(s.in, "%s\n. %s </dev/null\nstatus=$?\nset +e\necho; echo '%s'$status\n", strict, file, mark)
	printed, status, err := s.read()
	if err != nil {
		return printed, fmt.Errorf("a command failed, and ended the shell: %w", err)
	}
	if status != step.Exit {
		return printed, fmt.Errorf("the exit code is %d, not %d", status, step.Exit)
	}
	return printed, nil
}

// read returns what a step printed, and its exit code.
func (s *shell) read() (printed string, status int, err error) {
	var b bytes.Buffer
	for {
		line, err := s.out.ReadString('\n')
		if after, found := strings.CutPrefix(line, mark); found {
			status, err := strconv.Atoi(strings.TrimSpace(after))
			// The empty line before the mark ends a line that had no end.
			return strings.TrimSuffix(b.String(), "\n"), status, err
		}
		b.WriteString(line)
		if err != nil {
			return b.String(), 0, err
		}
	}
}
