package inspecttest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/inspect"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{
		"hold":          hold,
		"leave a child": leaveAChild,
		"pin privately": pinPrivately,
	})
}

// inherited is the descriptor that a command gets.
const inherited = 3

// hold does nothing with the link that it inherited.
func hold([]string) int { return ready() }

// ready says that the command has done what it is for, and waits.
func ready() int {
	fmt.Println(os.Getpid())
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// leaveAChild leaves the link to a child and ends.
func leaveAChild([]string) int {
	child := kerneltest.Command("hold")
	child.SysProcAttr = nil // it does not end with its parent
	child.Stdin, child.Stdout = os.Stdin, os.Stdout
	child.ExtraFiles = []*os.File{os.NewFile(inherited, "link")}
	if err := child.Start(); err != nil {
		return fail(err)
	}
	return 0
}

// pinPrivately pins the link in a bpffs of its own that nobody else sees, and
// closes it.
func pinPrivately(args []string) int {
	if err := unix.Mount("bpf", args[0], "bpf", 0, ""); err != nil {
		return fail(err)
	}
	if err := kernel.Pin(inherited, filepath.Join(args[0], "private")); err != nil {
		return fail(err)
	}
	if err := unix.Close(inherited); err != nil {
		return fail(err)
	}
	return ready()
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// start starts one of the commands with the link, which it then is alone to have,
// and returns the pid that it says.
func start(t *testing.T, link kernel.FD, cmd *exec.Cmd) (*kerneltest.Process, int) {
	t.Helper()
	file := os.NewFile(uintptr(link), "link")
	defer file.Close()
	cmd.ExtraFiles = []*os.File{file}
	p := kerneltest.Start(t, cmd)
	if !p.Lines.Scan() {
		t.Fatalf("%s said nothing", cmd)
	}
	var pid int
	if _, err := fmt.Sscan(p.Lines.Text(), &pid); err != nil {
		t.Fatal(err)
	}
	return p, pid
}

// attach attaches a program of that name to Near by a bare link.
func attach(t *testing.T, v *kerneltest.Veth, name string, flags uint32) kernel.FD {
	t.Helper()
	return attachProgram(t, v.Near, v.NearIndex, kerneltest.Pass(t, name, nil), flags)
}

func attachProgram(t *testing.T, ns *kerneltest.NetNS, index int, p *ebpf.Program, flags uint32) (fd kernel.FD) {
	t.Helper()
	ns.In(t, func() (err error) {
		fd, err = kernel.LinkCreateXDP(p.FD(), index, flags)
		return err
	})
	return fd
}

// attachByNetlink attaches a program as `ip link set dev IF xdp` does.
func attachByNetlink(t *testing.T, ns *kerneltest.NetNS, index int, p *ebpf.Program) {
	t.Helper()
	if err := ns.Conn.SetXDP(index, p.FD(), 0); err != nil {
		t.Fatal(err)
	}
}

// linkID reads which link it is.
func linkID(t *testing.T, fd kernel.FD) uint32 {
	t.Helper()
	info, err := kernel.XDPLinkInfo(fd)
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}

func look(t *testing.T, names ...string) *inspect.Report {
	t.Helper()
	r, err := inspect.Look(inspect.Options{Interfaces: names})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// found is the only finding that fits.
func found(t *testing.T, r *inspect.Report, what string, is func(inspect.Finding) bool) inspect.Finding {
	t.Helper()
	var all []inspect.Finding
	for _, f := range r.Findings {
		if is(f) {
			all = append(all, f)
		}
	}
	if len(all) != 1 {
		t.Fatalf("%s is found %d times in %+v", what, len(all), r.Findings)
	}
	return all[0]
}

// called is the finding of the program of that name.
func called(t *testing.T, r *inspect.Report, name string) inspect.Finding {
	t.Helper()
	return found(t, r, name, func(f inspect.Finding) bool { return f.Program.Name == name })
}

func wantHow(t *testing.T, f inspect.Finding, how ...inspect.How) {
	t.Helper()
	if !slices.Equal(f.How, how) {
		t.Errorf("it is held by %q, want %q: %+v", f.How, how, f)
	}
}

func wantProcess(t *testing.T, f inspect.Finding, pid int) {
	t.Helper()
	if len(f.By.Processes) != 1 || f.By.Processes[0].PID != pid {
		t.Errorf("it is held by processes %v, want %d", f.By.Processes, pid)
	}
}

func wantAt(t *testing.T, f inspect.Finding, name string, mode xdp.Mode) {
	t.Helper()
	if f.Interface != name || f.Mode != mode {
		t.Errorf("it is at %q in %s mode, want %q in %s mode", f.Interface, f.Mode, name, mode)
	}
}

func wantNote(t *testing.T, f inspect.Finding, words string) {
	t.Helper()
	if !slices.ContainsFunc(f.Notes, func(n string) bool { return strings.Contains(n, words) }) {
		t.Errorf("the notes %q do not say %q", f.Notes, words)
	}
}

// wantRefused checks that the change would be refused, and that the people to ask
// are named.
func wantRefused(t *testing.T, a inspect.Answer, why string, ask ...string) {
	t.Helper()
	if a.OK || !strings.Contains(a.Why, why) {
		t.Errorf("the answer is %+v, want a refusal that says %q", a, why)
	}
	for _, who := range ask {
		if !slices.ContainsFunc(a.Ask, func(s string) bool { return strings.Contains(s, who) }) {
			t.Errorf("those to ask are %q, without %q", a.Ask, who)
		}
	}
}
