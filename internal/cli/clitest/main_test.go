package clitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/cli"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{"holdfast": func(args []string) int {
		// What `holdfast run` starts inherits the environment, and is this
		// binary again, because there is no other in a test machine.
		if len(args) > 0 && args[0] == "child" {
			return child(args[1], args[2:])
		}
		return cli.Main(cli.SystemEnv())
	}, "limited": limited})
}

// self is this binary, for whichever process reads it.
const self = "/proc/self/exe"

// child is the command that `holdfast run` runs.
func child(verb string, args []string) int {
	switch verb {
	case "exit":
		code, _ := strconv.Atoi(args[0])
		return code
	case "kill itself":
		number, _ := strconv.Atoi(args[0])
		unix.Kill(os.Getpid(), syscall.Signal(number))
		select {}
	case "until killed":
		return waitForInput()
	case "tell signal":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGHUP)
		fmt.Println(os.Getpid())
		fmt.Println(<-signals)
		return 3
	case "ignoring":
		// What nohup does, and a shell to a job in the background.
		signal.Ignore(unix.SIGHUP, unix.SIGINT)
		fmt.Fprintln(os.Stderr, unix.Exec(self, append([]string{self}, args...), os.Environ()))
		return 1
	case "tell ignored":
		fmt.Println(signal.Ignored(unix.SIGHUP), signal.Ignored(unix.SIGINT), signal.Ignored(unix.SIGTERM))
		return waitForInput()
	case "copy":
		io.Copy(os.Stdout, os.Stdin)
		fmt.Fprintln(os.Stderr, strings.Join(args, "|"))
		return 0
	case "container":
		return container(args)
	case "job":
		// What a shell does with a command line: a process group of its own,
		// in the foreground of the terminal.
		job := exec.Command(self, args...)
		job.Stdin, job.Stdout, job.Stderr = os.Stdin, os.Stdout, os.Stderr
		job.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Ctty: 3, Pdeathsig: syscall.SIGKILL}
		if err := job.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		fmt.Println(job.Process.Pid)
		job.Wait()
		return job.ProcessState.ExitCode()
	case "leave one behind":
		// It has the test's pipe and so ends with the test at the latest.
		behind := exec.Command(self, "child", "until killed")
		behind.Stdin = os.Stdin
		behind.Stdout = os.Stdout
		if err := behind.Start(); err != nil {
			return 1
		}
		return 5
	}
	return 99
}

// waitForInput prints the pid, and ends with the input.
func waitForInput() int {
	fmt.Println(os.Getpid())
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// machine is an interface with a peer, a state directory, and a bpffs for the
// pins of shared hooks, all of the test alone.
type machine struct {
	*kerneltest.Veth
	t           testing.TB
	state, pins string
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	kerneltest.NoLeaks(t)
	return &machine{kerneltest.NewVeth(t), t, kerneltest.BPFFS(t), kerneltest.BPFFS(t)}
}

// with is the machine for a subtest.
func (m *machine) with(t testing.TB) *machine { return &machine{m.Veth, t, m.state, m.pins} }

// command is the command in a process in the namespace of Near.
func (m *machine) command(args ...string) *exec.Cmd {
	cmd := kerneltest.Command("holdfast", args...)
	cmd.Env = append(cmd.Env, "HOLDFAST_BPFFS="+m.state, "LIBXDP_BPFFS="+m.pins, "TZ=UTC")
	// Not of the terminal that the tests may be started from.
	cmd.SysProcAttr.Setsid = true
	// Who keeps the output open after the command's end is a bug.
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// asStranger is the command by a user without capabilities.
func (m *machine) asStranger(args ...string) *exec.Cmd {
	cmd := m.command(args...)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	return cmd
}

// result is what a command did.
type result struct {
	t        testing.TB
	args     []string
	code     int
	out, err string
}

func (m *machine) holdfast(args ...string) result {
	m.t.Helper()
	return m.finish(m.Near, m.command(args...))
}

// finish runs the command in the namespace to its end.
func (m *machine) finish(ns *kerneltest.NetNS, cmd *exec.Cmd) result {
	m.t.Helper()
	return m.collect(func() error { return ns.Do(cmd.Run) }, cmd)
}

// collect runs the command, which run starts, to its end.
func (m *machine) collect(run func() error, cmd *exec.Cmd) result {
	m.t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("%v: %v", cmd.Args[1:], err)
	}
	return result{m.t, cmd.Args[1:], cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

func (r result) String() string {
	return fmt.Sprintf("holdfast %s: exit code %d\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.code, r.out, r.err)
}

// succeeds fails the test unless the command succeeded.
func (r result) succeeds() result {
	r.t.Helper()
	if r.code != 0 {
		r.t.Fatalf("%s", r)
	}
	return r
}

// fails fails the test unless the command did, with that code and one sentence
// that says all of this, and no result.
func (r result) fails(code int, says ...string) {
	r.t.Helper()
	sentences := 0
	for line := range strings.Lines(r.err) {
		if !strings.HasPrefix(line, "level=") { // what is logged on the way
			sentences++
		}
	}
	if r.code != code || r.out != "" || sentences != 1 || !strings.Contains("\n"+r.err, "\nholdfast: ") {
		r.t.Fatalf("%s\nwant exit code %d, one sentence and no result", r, code)
	}
	r.says(says...)
}

// says fails the test unless the error output says all of this.
func (r result) says(words ...string) {
	r.t.Helper()
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			r.t.Errorf("%s\nwhich does not say %q", r, w)
		}
	}
}

// decode reads the one JSON result of that kind.
func decode[T any](r result, kind string) T {
	r.t.Helper()
	var e struct {
		Version int
		Kind    string
		Result  T
	}
	d := json.NewDecoder(strings.NewReader(r.succeeds().out))
	if err := d.Decode(&e); err != nil {
		r.t.Fatalf("%s\nwhich is no JSON: %v", r, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		r.t.Errorf("%s\nwhich is more than one result", r)
	}
	if e.Version != 1 || e.Kind != kind {
		r.t.Errorf("%s\nwhich is version %d of %q, want 1 of %q", r, e.Version, e.Kind, kind)
	}
	return e.Result
}

// attach attaches one of our objects at Near.
func (m *machine) attach(object string, flags ...string) hookStatus {
	m.t.Helper()
	args := append([]string{"attach", m.NearName, kerneltest.ObjectFile(m.t, object), "-o", "json"}, flags...)
	return decode[hookStatus](m.holdfast(args...), "attachment")
}

// status is what `holdfast status` shows in the namespace of Near.
func (m *machine) status(args ...string) []hookStatus {
	m.t.Helper()
	return decode[[]hookStatus](m.holdfast(append([]string{"status", "-o", "json"}, args...)...), "status")
}

// native and generic are the ids of the programs at Near, as the kernel has it.
func (m *machine) native() uint32  { m.t.Helper(); return m.Near.Device(m.t, m.NearName).XDP.Native }
func (m *machine) generic() uint32 { m.t.Helper(); return m.Near.Device(m.t, m.NearName).XDP.Generic }

// holds fails the test unless that program, or none for 0, is at Near.
func (m *machine) holds(program uint32) {
	m.t.Helper()
	if got := m.native(); got != program {
		m.t.Errorf("program %d is attached, want %d", got, program)
	}
}

// empties fails the test unless Near has no program soon: the kernel releases
// links after their last descriptor has been closed.
func (m *machine) empties() {
	m.t.Helper()
	if !kerneltest.Eventually(func() bool { return m.native() == 0 }) {
		m.t.Errorf("program %d is still attached", m.native())
	}
}

// action is what the attached program does with a UDP packet to that port.
func (m *machine) action(port uint16) uint32 {
	m.t.Helper()
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(m.native()))
	if err != nil {
		m.t.Fatal(err)
	}
	defer p.Close()
	packet := make([]byte, 60)
	packet[12], packet[13] = 0x08, 0x00 // IPv4
	packet[14], packet[14+9] = 0x45, unix.IPPROTO_UDP
	packet[14+20+2], packet[14+20+3] = byte(port>>8), byte(port)
	action, err := p.Run(&ebpf.RunOptions{Data: packet})
	if err != nil {
		m.t.Fatal(err)
	}
	return action
}

const (
	drop = 1
	pass = 2
)

// process is a command that runs while the test goes on.
type process struct {
	*kerneltest.Process
	t      testing.TB
	errOut *bytes.Buffer
}

// start starts the command in the namespace of Near. It ends with the test.
func (m *machine) start(cmd *exec.Cmd) *process {
	m.t.Helper()
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	return &process{m.Near.Start(m.t, cmd), m.t, &errOut}
}

// line reads a line that the process prints.
func (p *process) line() string {
	p.t.Helper()
	if !p.Lines.Scan() {
		p.t.Fatalf("no more output: %v; stderr: %s", p.Lines.Err(), p.errOut)
	}
	return p.Lines.Text()
}

// pid reads the pid that the process, or its child, prints.
func (p *process) pid() int {
	p.t.Helper()
	pid, err := strconv.Atoi(p.line())
	if err != nil {
		p.t.Fatal(err)
	}
	return pid
}

// code waits until the process has ended, and is its exit code; -1 where a
// signal ended it.
func (p *process) code() int {
	p.Wait()
	return p.ProcessState.ExitCode()
}

// ended tells whether no process has the pid any more, or it is a zombie. Its first
// thread is one while others are still on their way out, and the process is none.
func ended(pid int) bool {
	switch processState(pid) {
	case "":
		return true
	case "Z", "X":
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		return len(threads) <= 1
	}
	return false
}

// processState is the letter for the state of a process, empty where there is
// none.
func processState(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, after, _ := strings.Cut(string(b), ") ")
	state, _, _ := strings.Cut(after, " ")
	return state
}

func itoa[T int | uint32](n T) string { return strconv.FormatInt(int64(n), 10) }
