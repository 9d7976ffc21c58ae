package conformance

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// commands are what rows run as a process of their own, in the network
// namespace of the interface at hand.
var commands = map[string]func([]string) int{
	"hold":  command(hold),
	"send":  command(sendLink),
	"nest":  command(nest),
	"take":  command(take),
	"actor": command(actor),
}

// command lets a function be a command. What it says to the test are lines of
// standard output: a word, and what belongs to it.
func command(run func(args []string) error) func([]string) int {
	return func(args []string) int {
		if err := run(args); err != nil {
			fmt.Println("error", err)
			return 1
		}
		return 0
	}
}

// process is a command that runs.
type process struct {
	*place
	*kerneltest.Process
}

// start starts a command with the half it is about and the interface at hand.
// It is killed with the row at the latest.
func (p *place) start(prepare func(*exec.Cmd), name string, args ...string) *process {
	p.Helper()
	cmd := kerneltest.Command(name, append([]string{p.half, strconv.Itoa(p.index)}, args...)...)
	if prepare != nil {
		prepare(cmd)
	}
	return &process{p, p.ns.Start(p.T, cmd)}
}

// says reads the next line, which must start with that word, and returns the
// rest.
func (c *process) says(word string) string {
	c.Helper()
	if !c.Lines.Scan() {
		c.Fatalf("%s: the process ended, and should have said %q", c.half, word)
	}
	first, rest, _ := strings.Cut(c.Lines.Text(), " ")
	if first != word {
		c.Fatalf("%s: the process said %q, want %q", c.half, c.Lines.Text(), word)
	}
	return rest
}

// tell sends it a line.
func (c *process) tell(word string) {
	c.Helper()
	_, err := fmt.Fprintln(c.Input, word)
	c.must(err)
}

// loaded learns the id of the program that the process loaded, by that name.
func (c *process) loaded(name string) {
	c.Helper()
	id, err := strconv.ParseUint(c.says("loaded"), 10, 32)
	c.must(err)
	c.ids[uint32(id)] = name
}

// job is what commands share: the half, the interface, and a link.
type job struct {
	half  string
	index int
	prog  *ebpf.Program
	link  kernel.FD
	own   *xdp.Link
}

// newJob reads the arguments that start gave and loads a program of that name.
func newJob(args []string, name string) (*job, error) {
	index, err := strconv.Atoi(args[1])
	if err != nil {
		return nil, err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		return nil, err
	}
	info, err := kernel.ReadProgram(kernel.FD(prog.FD()))
	if err != nil {
		return nil, err
	}
	fmt.Println("loaded", info.ID)
	return &job{half: args[0], index: index, prog: prog, link: -1}, nil
}

// attach makes the link. The process is in the interface's namespace.
func (j *job) attach() (err error) {
	if j.half == "kernel" {
		j.link, err = kernel.LinkCreateXDP(j.prog.FD(), j.index, native)
		return err
	}
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		return err
	}
	hook, err := ns.HookAt(j.index, xdp.Native)
	if err != nil {
		return err
	}
	j.own, err = hook.AttachLink(j.prog)
	return err
}

func (j *job) persist(path string) error {
	if j.half == "kernel" {
		return kernel.Pin(j.link, path)
	}
	return j.own.Persist(path)
}

func (j *job) fd() int {
	if j.half == "kernel" {
		return int(j.link)
	}
	return j.own.FD()
}

func (j *job) close() error {
	if j.half == "kernel" {
		return j.link.Close()
	}
	return j.own.Close()
}

// hold attaches a program by a link, pins that if a path is given, and waits to
// be killed.
func hold(args []string) error {
	j, err := newJob(args, "held")
	if err != nil {
		return err
	}
	if err := j.attach(); err != nil {
		return err
	}
	if len(args) > 2 {
		if err := j.persist(args[2]); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	return wait()
}

func wait() error {
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// sendLink attaches, sends the link through the socket that it inherited as
// descriptor 3, and waits to be killed.
func sendLink(args []string) error {
	j, err := newJob(args, "held")
	if err != nil {
		return err
	}
	if err := j.attach(); err != nil {
		return err
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(j.fd()), nil, 0); err != nil {
		return err
	}
	fmt.Println("ready")
	return wait()
}

// nest attaches and pins in a bpffs that only its own mount namespace has, and
// gives up its descriptors. On a line of standard input it unmounts that.
func nest(args []string) error {
	j, err := newJob(args, "held")
	if err != nil {
		return err
	}
	dir := args[2]
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		return err
	}
	if err := j.attach(); err != nil {
		return err
	}
	if err := j.persist(dir + "/link"); err != nil {
		return err
	}
	if err := j.close(); err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	if err := unix.Unmount(dir, 0); err != nil {
		return err
	}
	fmt.Println("unmounted")
	return wait()
}

// take opens the link that another process pinned and updates it.
func take(args []string) error {
	j, err := newJob(args, "taken")
	if err != nil {
		return err
	}
	if j.half == "kernel" {
		if j.link, err = kernel.OpenPin(args[2]); err == nil {
			err = kernel.LinkUpdateAny(j.link, j.prog.FD())
		}
	} else {
		if j.own, err = xdp.OpenPinned(args[2]); err == nil {
			err = j.own.Replace(xdp.ReplaceOptions{Program: j.prog, Expect: xdp.Any})
		}
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return wait()
}
