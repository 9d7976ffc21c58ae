package peertest

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// can is what a tool does with chains of one version: 0 for yes, or the exit
// code with which it refuses.
type can struct{ read, add, removeOne, removeAll int }

// tableRow is one line of the table that the documents have, too.
var tableRow = regexp.MustCompile(`^\| (\S.*) \| (\d) \| (\S.*) \| (\S.*) \| (\S.*) \| (\S.*) \|$`)

// interoperability reads what each tool can do with chains of each version, by
// the tool's name.
func interoperability(t *testing.T) map[string]map[int]can {
	t.Helper()
	text, err := os.ReadFile("testdata/interoperability.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[int]can{}
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n")[2:] {
		m := tableRow.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("the table's line %q is none", line)
		}
		var codes [4]int
		for i, cell := range m[3:] {
			if cell == "yes" {
				continue
			}
			if _, err := fmt.Sscanf(cell, "no (%d)", &codes[i]); err != nil {
				t.Fatalf("%q is neither \"yes\" nor \"no (exit code)\"", cell)
			}
		}
		version, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		if all[m[1]] == nil {
			all[m[1]] = map[int]can{}
		}
		all[m[1]][version] = can{codes[0], codes[1], codes[2], codes[3]}
	}
	return all
}

// refusal is what libxdp says to a chain of that version.
func refusal(op string, version int) string {
	switch {
	case version == 3:
		return "XDP dispatcher version 3 higher than supported 2"
	case op != "read":
		return "Existing dispatcher version 2 is older than our version 3. Refusing transparent upgrade, unload first"
	}
	return ""
}

// versions are of the dispatchers that tools make at an empty hook.
var versions = map[string]int{"Holdfast": 2, "libxdp 1.3": 2, "libxdp 1.5": 2, "libxdp 1.6": 3}

const (
	onPass        = "XDP_PASS"
	onDropAndPass = "XDP_DROP,XDP_PASS"
)

// TestDebate shows what the kernel's developers argued about in March 2020, each
// claim as far as it is that of shared hooks.
func TestDebate(t *testing.T) {
	t.Run("well-behaved applications need no more than compare-and-swap with the expected program", changeOneHookAtOnce)
	t.Run("query, see that it is a dispatcher, build a new one, swap it: by netlink, without a daemon", eachToolSharesHooks)
}

// eachToolSharesHooks with each other: writers and readers in all pairs.
// samplePeers picks what is to be done with other tools. What they do with each other's
// chains is not the kernel's affair: two of the matrix do all of it, the oldest and the
// one that does most in full, and the others one of n, not the same ones.
func samplePeers(n int) kerneltest.Sample {
	if kerneltest.Kernel() == "5.10" {
		return kerneltest.Sample{}
	}
	return kerneltest.OneOfElsewhere(n)
}

func eachToolSharesHooks(t *testing.T) {
	needChains(t)
	table := interoperability(t)
	sample := samplePeers(3)
	pairs := 0
	for _, writer := range tools(t) {
		for _, other := range tools(t) {
			pairs++
			if !sample.Takes(pairs - 1) {
				continue
			}
			t.Run(writer.name()+" and "+other.name(), func(t *testing.T) {
				p := pair{writer: writer, other: other, version: versions[writer.name()]}
				p.can = table[other.name()][p.version]
				if _, ok := table[other.name()][p.version]; !ok {
					t.Fatalf("the table does not say what %s does with version %d", other.name(), p.version)
				}
				t.Run("one and two members", p.few)
				// Tools of xdp-tools that do all with each other's chains show
				// it with few.
				if ours := (library{}).name(); p.can != (can{}) || writer.name() == ours || other.name() == ours {
					t.Run("ten members", p.ten)
				}
			})
		}
	}
}

// pair is a tool that makes a chain, and one that finds it.
type pair struct {
	writer, other tool
	version       int // of the chain
	can           can // what the other tool is expected to do with it
}

// did checks that the other tool did what it is expected to do, or refused with
// the right exit code and words. It tells which.
func (p pair) did(t *testing.T, op string, err error, code int) bool {
	t.Helper()
	var exit *exitError
	switch {
	case code == 0 && err != nil:
		t.Fatalf("%s does not %s a chain of %s: %v", p.other.name(), op, p.writer.name(), err)
	case code != 0 && err == nil:
		t.Fatalf("%s did %s a chain of %s, and the table says that it does not", p.other.name(), op, p.writer.name())
	case code != 0 && (!errors.As(err, &exit) || exit.code != code || !strings.Contains(exit.text, refusal(op, p.version))):
		t.Fatalf("%s refuses to %s a chain of %s with %v, want exit code %d and %q",
			p.other.name(), op, p.writer.name(), err, code, refusal(op, p.version))
	}
	return code == 0
}

// read checks what the other tool reads of the chain.
func (p pair) read(t *testing.T, s *site, c attachedChain) {
	t.Helper()
	got, err := p.other.members(t, s)
	if p.did(t, "read", err, p.can.read) && !slices.Equal(got, c.members) {
		t.Errorf("%s reads %v, want %v", p.other.name(), got, c.members)
	}
}

// readBack checks what the writer reads of the chain that another changed.
func (p pair) readBack(t *testing.T, s *site, c attachedChain) {
	t.Helper()
	got, err := p.writer.members(t, s)
	if err != nil {
		t.Fatalf("%s no longer reads the chain: %v", p.writer.name(), err)
	}
	if !slices.Equal(got, c.members) {
		t.Errorf("%s reads %v, want %v", p.writer.name(), got, c.members)
	}
}

// made reads the chain and checks its version and its members' settings.
func (p pair) made(t *testing.T, s *site, batches ...batch) attachedChain {
	t.Helper()
	c := s.chain(t)
	if c.version != p.version {
		t.Fatalf("the chain has version %d, want %d", c.version, p.version)
	}
	var want, got []batch
	for _, b := range batches {
		for range b.n {
			want = append(want, batch{1, b.priority, b.actions, ""})
		}
	}
	for _, m := range c.members {
		got = append(got, batch{1, m.priority, m.actions, ""})
	}
	if !slices.Equal(got, want) {
		t.Fatalf("the chain is %v, want %v", c.members, batches)
	}
	return c
}

// untouched checks that a refusal changed nothing.
func untouched(t *testing.T, s *site, c attachedChain) {
	t.Helper()
	if got := s.chain(t); got.dispatcher != c.dispatcher || !slices.Equal(got.members, c.members) {
		t.Fatalf("after a refusal the chain is %v, want %v", got, c)
	}
}

func (p pair) mustLoad(t *testing.T, s *site, b batch) {
	t.Helper()
	if err := p.writer.load(t, s, b); err != nil {
		t.Fatalf("%s does not load: %v", p.writer.name(), err)
	}
}

// end takes all members out: the other tool if it can, else the writer.
func (p pair) end(t *testing.T, s *site) {
	t.Helper()
	c := s.chain(t)
	if !p.did(t, "unload", p.other.removeAll(t, s), p.can.removeAll) {
		untouched(t, s, c)
		if err := p.writer.removeAll(t, s); err != nil {
			t.Fatalf("%s does not unload its chain: %v", p.writer.name(), err)
		}
	}
	if c := s.chain(t); c.dispatcher != 0 {
		t.Errorf("after all was taken out there is %v", c)
	}
	p.readBack(t, s, attachedChain{})
}

func (p pair) few(t *testing.T) {
	kerneltest.NoLeaks(t)
	s := newSite(t)
	first, second, third := batch{1, 50, onPass, ""}, batch{1, 10, onDropAndPass, ""}, batch{1, 30, onPass, ""}
	p.mustLoad(t, s, first)
	one := p.made(t, s, first)
	p.read(t, s, one)

	if !p.did(t, "add to", p.other.load(t, s, second), p.can.add) {
		untouched(t, s, one)
		p.mustLoad(t, s, second)
		two := p.made(t, s, second, first)
		p.read(t, s, two)
		p.end(t, s)
		return
	}
	two := p.made(t, s, second, first)
	if two.members[1] != one.members[0] {
		t.Errorf("the member %v was loaded anew: %v", one.members[0], two.members[1])
	}
	p.read(t, s, two)
	p.readBack(t, s, two)
	s.send(t, two, []uint64{packets, packets}, 0)

	p.did(t, "take one out of", p.other.remove(t, s, one.members[0].id), p.can.removeOne)
	left := p.made(t, s, second)
	p.readBack(t, s, attachedChain{members: two.members[:1]})
	s.send(t, left, []uint64{packets}, 0)

	p.mustLoad(t, s, third)
	p.read(t, s, p.made(t, s, second, third))
	p.end(t, s)
}

func (p pair) ten(t *testing.T) {
	kerneltest.NoLeaks(t)
	s := newSite(t)
	last, first := batch{6, 60, onPass, ""}, batch{4, 40, onDropAndPass, ""}
	p.mustLoad(t, s, last)
	p.mustLoad(t, s, first)
	ten := p.made(t, s, first, last)
	p.read(t, s, ten)
	s.send(t, ten, []uint64{packets, packets, packets, packets, packets, 0, 0, 0, 0, 0}, 0)

	p.eleventh(t, s)
	untouched(t, s, ten)

	const middle = 5
	if p.did(t, "take one out of", p.other.remove(t, s, ten.members[middle].id), p.can.removeOne) {
		want := slices.Delete(slices.Clone(ten.members), middle, middle+1)
		last.n--
		if nine := p.made(t, s, first, last); !slices.Equal(nine.members, want) {
			t.Errorf("without %v the chain is %v", ten.members[middle], nine.members)
		}
		p.readBack(t, s, attachedChain{members: want})
	} else {
		untouched(t, s, ten)
	}
	p.end(t, s)
}

// eleventh checks that nobody adds an eleventh member. Who reads the chain sees
// that it is full before that its version is another.
func (p pair) eleventh(t *testing.T, s *site) {
	t.Helper()
	err := p.other.load(t, s, batch{1, 70, onPass, ""})
	if p.can.read != 0 {
		p.did(t, "add to", err, p.can.add)
		return
	}
	var exit *exitError
	if full := errors.As(err, &exit) && exit.code == 249 && strings.Contains(exit.text, "Argument list too long"); !full && !errors.Is(err, libxdp.ErrFull) {
		t.Errorf("%s answers an eleventh member with %v, want that the chain is full", p.other.name(), err)
	}
}
