package libxdptest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// operation is a change that is killed at every point, and the chain before and
// after it. It takes what it adds from load.
type operation struct {
	before, after []string
	make          func(c *libxdp.Chains, h *xdp.Hook, load func(name string) libxdp.Addition) (*libxdp.Chain, error)
}

var operations = map[string]operation{
	"a first add": {nil, []string{"m2"}, func(c *libxdp.Chains, h *xdp.Hook, load func(string) libxdp.Addition) (*libxdp.Chain, error) {
		return c.Add(context.Background(), h, load("m2"))
	}},
	"an add": {[]string{"m1"}, []string{"m1", "m2"}, func(c *libxdp.Chains, h *xdp.Hook, load func(string) libxdp.Addition) (*libxdp.Chain, error) {
		return c.Add(context.Background(), h, load("m2"))
	}},
	"a replace": {[]string{"m1", "m2"}, []string{"m1", "m3"}, func(c *libxdp.Chains, h *xdp.Hook, load func(string) libxdp.Addition) (*libxdp.Chain, error) {
		return c.Replace(context.Background(), h, libxdp.Target{Name: "m2"}, load("m3"))
	}},
	"a remove": {[]string{"m1", "m2"}, []string{"m2"}, func(c *libxdp.Chains, h *xdp.Hook, _ func(string) libxdp.Addition) (*libxdp.Chain, error) {
		return c.Remove(context.Background(), h, libxdp.Target{Name: "m1"})
	}},
	"the last remove": {[]string{"m2"}, nil, func(c *libxdp.Chains, h *xdp.Hook, _ func(string) libxdp.Addition) (*libxdp.Chain, error) {
		return c.Remove(context.Background(), h, libxdp.Target{Name: "m2"})
	}},
}

// operate makes one change and says so. It inherits the maps of the members.
func operate(args []string) int {
	netns, name, bpffs, what := args[0], args[1], args[2], args[3]
	hook, chains, err := openPlace(netns, name, bpffs)
	if err != nil {
		return fail(err)
	}
	maps := map[string]*ebpf.Map{}
	for i, name := range mapNames {
		if maps[name], err = ebpf.NewMapFromFD(3 + i); err != nil {
			return fail(err)
		}
	}
	o, err := object.Read("member.o", bytes.NewReader(bpfprog.ELF("member")))
	if err != nil {
		return fail(err)
	}
	_, err = operations[what].make(chains, hook, func(name string) libxdp.Addition {
		return libxdp.Addition{Object: o, Load: object.LoadOptions{Program: object.Choice{Name: name}, MapReplacements: maps}}
	})
	if err != nil {
		return fail(err)
	}
	fmt.Println("done")
	chains.Wait()
	return 0
}

func TestAChangeThatIsKilledLeavesTheOldOrTheNewChain(t *testing.T) {
	needFreplace(t)
	for what, o := range operations {
		t.Run(what, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			kerneltest.FillDispatcher(t)
			var b *bench
			crash.Sweep{
				Sample: kerneltest.OneOf(3),
				Setup: func(t *testing.T) crash.Command {
					b = newBench(t)
					for _, name := range o.before {
						b.add(b.member(name))
					}
					c := crash.Command{
						Path:   "/proc/self/exe",
						Args:   []string{b.veth.Near.Path(), b.veth.NearName, b.bpffs, what},
						Env:    append(os.Environ(), kerneltest.CommandEnv("operate")),
						Counts: lasting,
					}
					for _, name := range mapNames {
						c.Files = append(c.Files, dup(t, b.maps[name].FD()))
					}
					return c
				},
				Check: func(t *testing.T, run crash.Run) {
					b.T = t
					c := b.read()
					if c.Problem != "" {
						t.Fatalf("problem: %s", c.Problem)
					}
					done := slices.Equal(names(c), o.after)
					if !done && !slices.Equal(names(c), o.before) {
						t.Fatalf("the chain is %v, want %v or %v", names(c), o.before, o.after)
					}
					if strings.Contains(run.Stdout, "done") && !done {
						t.Error("the command said that it is done, and it is not")
					}
					if len(c.Members) > 0 {
						if met := b.send(); !slices.Equal(met, names(c)) {
							t.Fatalf("a packet met %v, want %v", met, names(c))
						}
					}
					// Whoever comes next changes what is there, and cleans up.
					b.add(b.member("m9"))
					b.want(append(names(c), "m9")...)
					b.must(b.chains.RemoveAll(context.Background(), b.hook, xdp.Any))
					b.wantDirs()
				},
			}.Run(t)
		})
	}
}

// lasting counts the calls that leave something behind, or let go of it. What
// the others do ends with the process in any case, as do the programs by which
// cilium/ebpf finds out what the kernel can do.
func lasting(p crash.Point) bool {
	switch p.Call {
	case "bpf":
		return p.Op == "BPF_LINK_CREATE" || p.Op == "BPF_OBJ_PIN" ||
			p.Op == "BPF_PROG_LOAD" && (p.On == "xdp_dispatcher" || numbers[p.On] != 0)
	case "close", "setns":
		return false
	}
	return crash.Changes(p)
}

func dup(t *testing.T, fd int) *os.File {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(n), "")
	t.Cleanup(func() { f.Close() })
	return f
}
