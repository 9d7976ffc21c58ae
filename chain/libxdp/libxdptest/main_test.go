package libxdptest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) {
	kerneltest.Main(m, kerneltest.Commands{
		"contend": contend,
		"operate": operate,
	})
}

const port = 7777

// numbers are where the members of bpf/member.c count.
var numbers = map[string]uint32{
	"m0": 0, "m1": 1, "m2": 2, "m3": 3, "m4": 4, "m5": 5, "m6": 6, "m7": 7, "m8": 8, "m9": 9, "m10": 10,
	"a_member_with_a_long_name": 11, "m_frags": 12, "m_frags_too": 13, "m_mover": 14,
}

// bench is a pair of interfaces, a bpffs, and maps that all members share.
type bench struct {
	*testing.T
	veth   *kerneltest.Veth
	bpffs  string
	chains *libxdp.Chains
	hook   *xdp.Hook
	maps   map[string]*ebpf.Map
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{T: t, veth: kerneltest.NewVeth(t), bpffs: kerneltest.BPFFS(t)}
	b.hook = open(t, b.veth.Near, b.veth.NearName, xdp.Native)
	b.chains = openChains(t, b.bpffs)
	b.maps = sharedMaps(t)
	return b
}

func open(t *testing.T, n *kerneltest.NetNS, name string, mode xdp.Mode) *xdp.Hook {
	t.Helper()
	ns, err := xdp.OpenNamespace(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	h, err := ns.Hook(name, mode)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func openChains(t *testing.T, bpffs string) *libxdp.Chains {
	t.Helper()
	c, err := libxdp.Open(libxdp.Options{BPFFS: bpffs, Log: func(msg string, args ...any) { t.Log(append([]any{msg}, args...)...) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// mapNames are the maps of bpf/member.c that members share.
var mapNames = []string{"met", "turns"}

// sharedMaps makes the maps of bpf/member.c.
func sharedMaps(t *testing.T) map[string]*ebpf.Map {
	t.Helper()
	spec, err := bpfprog.LoadMember()
	if err != nil {
		t.Fatal(err)
	}
	maps := map[string]*ebpf.Map{}
	for _, name := range mapNames {
		m, err := ebpf.NewMap(spec.Maps[name])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		maps[name] = m
	}
	return maps
}

// noFreplace is why chains can't be had, found by trying once.
var noFreplace = struct {
	tried bool
	err   error
}{}

// needFreplace skips where the kernel takes no extensions.
func needFreplace(t *testing.T) {
	t.Helper()
	if !noFreplace.tried {
		b := newBench(t)
		_, err := b.chains.Add(context.Background(), b.hook, b.member("m0"))
		if err == nil {
			b.remove("m0")
		} else if canFreplace(err) {
			t.Fatal(err)
		}
		noFreplace.tried, noFreplace.err = true, err
	}
	if noFreplace.err != nil {
		t.Skip(noFreplace.err)
	}
}

// canFreplace tells whether the answer is not that the kernel takes no
// extensions.
func canFreplace(err error) bool { return !errors.Is(err, libxdp.ErrNoFreplace) }

// read reads one of this project's objects and sets its variables.
func read(t testing.TB, name string, assignments ...string) *object.Object {
	t.Helper()
	o, err := object.Read(name+".o", bytes.NewReader(bpfprog.ELF(name)))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range assignments {
		if err := o.Set(a); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// member is an addition of one of the programs of bpf/member.c.
func (b *bench) member(name string, assignments ...string) libxdp.Addition {
	b.Helper()
	return libxdp.Addition{
		Object: read(b.T, "member", assignments...),
		Load:   object.LoadOptions{Program: object.Choice{Name: name}, MapReplacements: b.maps},
	}
}

func at(priority uint32, a libxdp.Addition) libxdp.Addition {
	a.Priority = &priority
	return a
}

func (b *bench) add(adds ...libxdp.Addition) *libxdp.Chain {
	b.Helper()
	c, err := b.chains.Add(context.Background(), b.hook, adds...)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func (b *bench) remove(names ...string) *libxdp.Chain {
	b.Helper()
	var targets []libxdp.Target
	for _, n := range names {
		targets = append(targets, libxdp.Target{Name: n})
	}
	c, err := b.chains.Remove(context.Background(), b.hook, targets...)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func (b *bench) read() *libxdp.Chain {
	b.Helper()
	c, err := b.chains.Read(b.hook)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func names(c *libxdp.Chain) []string {
	var s []string
	for _, m := range c.Members {
		s = append(s, m.Name)
	}
	return s
}

// want checks that the chain is these members in this order, that packets meet
// them so, and that the bpffs has their pins and no others.
func (b *bench) want(members ...string) *libxdp.Chain {
	b.Helper()
	c := b.read()
	if c.Problem != "" {
		b.Fatalf("problem: %s", c.Problem)
	}
	if !slices.Equal(names(c), members) {
		b.Fatalf("the chain is %v, want %v", names(c), members)
	}
	if len(members) == 0 {
		if c.Kind != libxdp.Empty {
			b.Fatalf("the hook has %+v", c)
		}
		b.wantDirs()
		return c
	}
	if c.Kind != libxdp.Dispatcher || c.MadeBy != libxdp.MadeByHoldfast {
		b.Fatalf("the chain is %+v", c)
	}
	b.wantDirs(fmt.Sprintf("dispatch-%d-%d", b.hook.Index(), c.Dispatcher.ID))
	if met := b.send(); !slices.Equal(met, members) {
		b.Fatalf("a packet met %v, want %v", met, members)
	}
	return c
}

// wantDirs checks what is in the directory of pins, when changes have settled.
func (b *bench) wantDirs(want ...string) {
	b.Helper()
	b.chains.Wait()
	got := dirs(b.T, b.bpffs)
	if !slices.Equal(got, want) {
		b.Fatalf("the bpffs has %v, want %v", got, want)
	}
}

func dirs(t *testing.T, bpffs string) []string {
	t.Helper()
	entries, err := os.ReadDir(bpffs + "/xdp")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

type meeting struct{ Packets, Turn uint64 }

func (b *bench) met(name string) meeting {
	b.Helper()
	var m meeting
	if err := b.maps["met"].Lookup(numbers[name], &m); err != nil {
		b.Fatal(err)
	}
	return m
}

// send sends one packet through the hook and returns the members that it met, in
// order.
func (b *bench) send() []string {
	b.Helper()
	before := map[string]meeting{}
	for name := range numbers {
		before[name] = b.met(name)
	}
	b.packet()
	var met []string
	// Delivery on a veth may lag behind the sender, and what is read may be
	// half of it.
	kerneltest.Eventually(func() bool {
		last := len(met)
		met = nil
		for name := range numbers {
			if b.met(name).Packets != before[name].Packets {
				met = append(met, name)
			}
		}
		return len(met) > 0 && len(met) == last
	})
	slices.SortFunc(met, func(x, y string) int { return int(b.met(x).Turn) - int(b.met(y).Turn) })
	for _, name := range met {
		if n := b.met(name).Packets - before[name].Packets; n != 1 {
			b.Errorf("%s met one packet %d times", name, n)
		}
	}
	return met
}

func (b *bench) packet() {
	b.Helper()
	b.veth.Far.In(b.T, func() error {
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.veth.NearAddr, port)))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(make([]byte, 18))
		return err
	})
}

// refused checks that the error is of that kind, and that its last words are
// what to do about it.
func refused(t testing.TB, err, kind error, words ...string) *xdp.Error {
	t.Helper()
	var e *xdp.Error
	if !errors.Is(err, kind) || !errors.As(err, &e) {
		t.Fatalf("got: %v, want: %v", err, kind)
	}
	if e.Hint != "" && !strings.HasSuffix(err.Error(), "; "+e.Hint) {
		t.Errorf("%q does not end with what to do", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	return e
}

// passing is a program that passes all packets.
func passing() asm.Instructions {
	return asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}
}
