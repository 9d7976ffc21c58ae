package kerneltest

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"testing"
)

// Process is a command that runs beside the test.
type Process struct {
	*exec.Cmd
	// Input is its standard input, and Lines what it says, a line each.
	Input io.WriteCloser
	Lines *bufio.Scanner
}

// Start starts a command with pipes to its standard input and from its standard
// output; standard error, unless it is set, is the test's own. It is killed when
// the test ends, at the latest.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	return startWith(t, cmd, func() {
		t.Helper()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	})
}

// Start is [Start] in the namespace.
func (n *NetNS) Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	return startWith(t, cmd, func() {
		t.Helper()
		n.In(t, cmd.Start)
	})
}

// startWith is Start with what starts it.
func startWith(t testing.TB, cmd *exec.Cmd, start func()) *Process {
	t.Helper()
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{cmd, input, bufio.NewScanner(output)}
	start()
	t.Cleanup(p.Kill)
	return p
}

// Kill ends the process as nobody can prepare for, if it runs still, and waits
// for its end.
func (p *Process) Kill() {
	if p.ProcessState == nil {
		p.Process.Kill()
		p.Input.Close() // its children may be waiting for that
		p.Wait()
	}
}

// PID is the process's.
func (p *Process) PID() int { return p.Process.Pid }
