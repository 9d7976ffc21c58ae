package crashtest

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/cli"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest/crash"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// chainOperation is a change of a shared chain by the command. In the words of
// its command line IF stands for the interface and names ending in .o for
// objects, whose programs are called xdp_pass, xdp_drop, runconfig and filter.
type chainOperation struct {
	name          string
	before        []string // commands, in words
	command, told string
	from, to      []string // the members before and after
}

var chainOperations = []chainOperation{
	{
		"attach --shared, beside another", []string{"attach IF drop.o --shared"},
		"attach IF pass.o --shared", "attached ", []string{"xdp_drop"}, []string{"xdp_drop", "xdp_pass"},
	},
	{"attach --shared, as the first", nil, "attach IF pass.o --shared", "attached ", nil, []string{"xdp_pass"}},
	{
		"replace of a member", []string{"attach IF drop.o pass.o --shared"},
		"replace IF xdp_pass runconfig.o", "replaced ", []string{"xdp_drop", "xdp_pass"}, []string{"xdp_drop", "runconfig"},
	},
	{
		"detach of a member", []string{"attach IF drop.o pass.o --shared"},
		"detach IF xdp_drop", "detached ", []string{"xdp_drop", "xdp_pass"}, []string{"xdp_pass"},
	},
}

// A killed command leaves the old chain or the new one. gc then has nothing to
// remove but what is no chain's, and the next command goes on with what is there.
// All operations are killed on one kernel, the first one on the others: what the
// library leaves there, chain/libxdp/libxdptest shows.
func TestTheCommandCanBeKilledAnywhereInAChangeOfAChain(t *testing.T) {
	kerneltest.NoLeaks(t)
	found, err := features.Kernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if features.Find(found, features.Freplace).Supported != features.Yes {
		t.Skip("this kernel takes no extensions (BPF_PROG_TYPE_EXT)")
	}
	kerneltest.FillDispatcher(t)
	for _, op := range chainOperations[:kerneltest.Rounds(len(chainOperations))] {
		t.Run(op.name, func(t *testing.T) {
			s := newSite(t)
			for _, name := range []string{"runconfig", "filter"} {
				s.objects[name] = kerneltest.ObjectFile(t, name)
			}
			crash.Sweep{
				Sample: kerneltest.OneOfElsewhere(3),
				Setup: func(t *testing.T) crash.Command {
					for _, c := range op.before {
						s.runs(t, c)
					}
					return crash.Command{Path: "/proc/self/exe", Args: s.words(op.command), Env: s.env(), Counts: lasting}
				},
				Check: func(t *testing.T, run crash.Run) { s.checkChain(t, op, run) },
				// What a kill after a call leaves, the one before the next does.
				BeforeOnly: true,
			}.Run(t)
		})
	}
}

func (s *site) checkChain(t *testing.T, op chainOperation, run crash.Run) {
	t.Helper()
	told := strings.HasPrefix(run.Stdout, op.told)
	if !run.Reached && (run.Status.ExitStatus() != 0 || !told) {
		t.Errorf("undisturbed it was not acknowledged: %v", run)
	}
	members := s.members(t)
	done := slices.Equal(members, op.to)
	switch {
	case !done && !slices.Equal(members, op.from):
		t.Errorf("the chain is %v, want %v or %v", members, op.from, op.to)
	case told && !done:
		t.Errorf("it said %q, and the chain is %v", run.Stdout, members)
	}
	s.runs(t, "gc")
	if again := s.members(t); !slices.Equal(again, members) {
		t.Errorf("gc made the chain %v of %v", again, members)
	}
	s.pinsOf(t, members)

	s.runs(t, "attach IF filter.o --shared --priority 1")
	members = slices.Insert(members, 0, "filter")
	if now := s.members(t); !slices.Equal(now, members) {
		t.Errorf("after the next attach the chain is %v, want %v", now, members)
	}
	s.pinsOf(t, members)
	s.runs(t, "detach IF --all")
	s.pinsOf(t, nil)
	for _, name := range names(t, s.pins) {
		if err := os.Remove(s.pins + "/" + name); err != nil { // the empty directory of all pins
			t.Error(err)
		}
	}
	s.empty(t)
}

// words are those of a command line.
func (s *site) words(command string) []string {
	words := strings.Fields(command)
	for i, w := range words {
		if object, ok := strings.CutSuffix(w, ".o"); ok {
			words[i] = s.objects[object]
		} else if w == "IF" {
			words[i] = s.name
		}
	}
	return append(words, "--libxdp-bpffs", s.pins)
}

// runs runs a command, in this process, which must succeed.
func (s *site) runs(t *testing.T, command string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := cli.Main(cli.Env{
		Args: s.words(command), Stdin: os.Stdin, Stdout: &stdout, Stderr: &stderr,
		Getenv: func(name string) string { return map[string]string{"HOLDFAST_BPFFS": s.dir}[name] },
	})
	if code != 0 {
		t.Fatalf("%s: exit code %d: %s", command, code, &stderr)
	}
}

// members are those of the chain, in order.
func (s *site) members(t *testing.T) []string {
	t.Helper()
	chains, err := libxdp.Open(libxdp.Options{BPFFS: s.pins})
	if err != nil {
		t.Fatal(err)
	}
	defer chains.Close()
	ns, err := xdp.OpenNamespace(s.netns)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := ns.Hook(s.name, xdp.Auto)
	if err != nil {
		t.Fatal(err)
	}
	c, err := chains.Read(h)
	if err != nil {
		t.Fatal(err)
	}
	if c.Problem != "" || c.Kind == libxdp.Single {
		t.Fatalf("the chain is %+v", c)
	}
	var all []string
	for _, m := range c.Members {
		all = append(all, m.Name)
	}
	return all
}

// pinsOf checks that the pins are those of the members and no others.
func (s *site) pinsOf(t *testing.T, members []string) {
	t.Helper()
	var pins []string
	for _, dir := range names(t, s.pins+"/xdp") {
		pins = append(pins, names(t, s.pins+"/xdp/"+dir)...)
	}
	var want []string
	for slot := range members {
		want = append(want, fmt.Sprintf("prog%d-link", slot), fmt.Sprintf("prog%d-prog", slot))
	}
	if !slices.Equal(pins, want) {
		t.Errorf("the pins are %v, want %v", pins, want)
	}
}

// lasting counts the calls that leave something that others can see.
func lasting(p crash.Point) bool { return crash.Changes(p) && visible(p) }
