package daemontest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// What one transaction asks for counts together.
func TestAQuotaHoldsForATransactionOfManyChanges(t *testing.T) {
	p := newGuarded(t)
	pass := p.readable("pass")
	adds := wire.Apply{Hook: p.own()}
	var files []string
	for n, name := range []string{"a", "b", "c"} {
		adds.Changes = append(adds.Changes, wire.Change{Op: owned.Add, Name: name, Object: &wire.Object{File: n}, Lifetime: owned.Permanent})
		files = append(files, pass)
	}
	if r, _ := p.ask(1001, asked{Method: "Apply", Files: files}, adds); !r.is("NotPermitted") {
		t.Errorf("three at once, and the quota is two: %s %s", r.Error, r.Parameters)
	}
	if got := p.chain(); got != nil {
		t.Errorf("the chain is %v", got)
	}
	// The memory of their maps does, too.
	count := p.readable("count")
	p.allow("{map-memory: " + number(memory(t, "count")*3/2) + "}")
	if r, _ := p.ask(1001, asked{Method: "Apply", Files: []string{count, count}}, wire.Apply{Hook: p.own(), Changes: adds.Changes[:2]}); !r.is("NotPermitted") {
		t.Errorf("the maps of two, and the quota is for one: %s %s", r.Error, r.Parameters)
	}
	if r, _ := p.ask(1001, asked{Method: "Apply", Files: []string{count, pass}}, wire.Apply{Hook: p.own(), Changes: adds.Changes[:2]}); r.Error != "" {
		t.Errorf("the maps of one: %s %s", r.Error, r.Parameters)
	}
	for _, name := range []string{"a", "b"} {
		if err := p.connect().detach(name); err != nil {
			t.Error(err)
		}
	}
	p.empty()
}

// allow has user 1001 attach and detach within a quota.
func (p *place) allow(quota string) {
	p.Helper()
	p.write("policy.yaml", `version: 1
rules:
- name: quota
  match: {uid: [1001]}
  allow: {verbs: [attach, detach, replace], quota: `+quota+`}
- name: root
  match: {uid: [0]}
  allow: {verbs: [attach, detach, replace], others: true}
`)
	if err := p.daemon.Reload(); err != nil {
		p.Fatal(err)
	}
}

// memory is what the maps of an object take.
func memory(t *testing.T, name string) uint64 {
	t.Helper()
	o, err := object.Read(name, bytes.NewReader(bpfprog.ELF(name)))
	if err != nil {
		t.Fatal(err)
	}
	_, bytes, err := o.Cost("")
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// Each quota of one object is held, and at its edge allows.
func TestAQuotaOfOneObjectIsHeldAtItsEdge(t *testing.T) {
	p := newGuarded(t)
	count := p.readable("count")
	elf := bpfprog.ELF("count")
	o, err := object.Read("count", bytes.NewReader(elf))
	if err != nil {
		t.Fatal(err)
	}
	instructions, bytes, err := o.Cost("")
	if err != nil {
		t.Fatal(err)
	}
	for what, n := range map[string]uint64{"map-memory": bytes, "instructions": uint64(instructions), "object-size": uint64(len(elf))} {
		p.allow("{" + what + ": " + number(n-1) + "}")
		if r, _ := p.ask(1001, asked{Method: "Attach", Files: []string{count}}, attaching(p, "a", owned.Permanent)); !r.is("NotPermitted") {
			t.Errorf("%s of one less: %s %s", what, r.Error, r.Parameters)
		}
		// Nor does it come in place of one that is allowed.
		if r, _ := p.ask(1001, asked{Method: "Attach", Files: []string{p.readable("pass")}}, attaching(p, "a", owned.Permanent)); what == "map-memory" && r.Error != "" {
			t.Errorf("%s: another: %s %s", what, r.Error, r.Parameters)
		} else if r.Error == "" {
			if r, _ := p.ask(1001, asked{Method: "Replace", Files: []string{count}}, wire.Replace{Hook: p.own(), Name: "a", Object: &wire.Object{}}); !r.is("NotPermitted") {
				t.Errorf("%s of one less, replaced: %s %s", what, r.Error, r.Parameters)
			}
			if err := p.connect().detach("a"); err != nil {
				t.Error(err)
			}
		}
		p.allow("{" + what + ": " + number(n) + "}")
		if r, _ := p.ask(1001, asked{Method: "Attach", Files: []string{count}}, attaching(p, "a", owned.Permanent)); r.Error != "" {
			t.Errorf("%s: %s %s", what, r.Error, r.Parameters)
		}
		if err := p.connect().detach("a"); err != nil {
			t.Error(err)
		}
	}
	p.empty()
}

// Maps that somebody keeps when their member has ended are still the kernel's memory.
func TestMapsThatAreKeptCountForTheirUser(t *testing.T) {
	p := newPlace(t)
	p.write("policy.yaml", "version: 1\nrules:\n- name: root\n  match: {uid: [0]}\n  allow: {verbs: [attach, detach], quota: {map-memory: "+number(memory(t, "count")*3/2)+"}}\n")
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	l, err := p.connect().hold("a", "count")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := l.files.Take(l.Maps["packets"])
	if err != nil {
		t.Fatal(err)
	}
	l.close()
	p.empty()
	if _, err := p.connect().hold("a", "count"); !errors.Is(err, xdp.ErrPermission) {
		t.Errorf("with the maps of another member kept: %v", err)
	}
	kept.Close()
	var again *lease
	eventually(t, "the memory to be free again", func() bool {
		again, err = p.connect().hold("a", "count")
		return err == nil
	})
	again.close()
	p.empty()
}

// What an object is called says something to people only: the daemon looks for no such
// file, which it could see where the client can't.
func TestTheNameOfAnObjectIsNotLookedFor(t *testing.T) {
	p := newPlace(t)
	secret := filepath.Join(p.etc, "secret")
	if err := os.Mkdir(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(secret, "there"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	relative, err := filepath.Rel(here, secret)
	if err != nil {
		t.Fatal(err)
	}
	c := p.connect()
	for _, name := range []string{"there", "not-there"} {
		hook, ns := p.hook()
		sent := filepath.Join(relative, name)
		if err := c.call("Attach", wire.Attach{Hook: hook, Name: "a", Object: &wire.Object{File: 1, Name: sent}}, nil, ns, p.object("pass")); err != nil {
			t.Fatal(err)
		}
		hook, ns = p.hook()
		var got wire.GetReply
		if err := c.call("Get", wire.Get{Hook: hook}, &got, ns); err != nil {
			t.Fatal(err)
		}
		if o := got.Attachment.Chain.Members[0].Object; o != sent {
			t.Errorf("%s became %s", sent, o)
		}
		if err := c.detach("a"); err != nil {
			t.Fatal(err)
		}
	}
	p.empty()
}

// The daemon reads nothing for whom it would do nothing.
func TestTheObjectOfWhoMayNotAttachIsNotRead(t *testing.T) {
	p := newGuarded(t)
	path := filepath.Join(p.etc, "nonsense")
	if err := os.WriteFile(path, []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	for method, parameters := range map[string]any{
		"Attach":  attaching(p, "a", owned.Permanent),
		"Replace": wire.Replace{Hook: p.own(), Name: "a", Object: &wire.Object{}},
		"Adopt":   wire.Adopt{Hook: p.own(), Name: "a"},
	} {
		if r, _ := p.ask(1004, asked{Method: method, Files: []string{path}}, parameters); !r.is("NotPermitted") {
			t.Errorf("%s: %s %s", method, r.Error, r.Parameters)
		}
	}
}

// What the objects of one call take together is no more than one may.
func TestTheObjectsOfOneCallAreBoundedTogether(t *testing.T) {
	p := newPlace(t)
	hook, ns := p.hook()
	apply, files := wire.Apply{Hook: hook}, []*os.File{ns}
	for n := range 8 {
		fd, err := unix.MemfdCreate("object", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "object")
		defer f.Close()
		// It is an object, with megabytes of nothing behind it.
		if _, err := f.Write(bpfprog.ELF("pass")); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(4 << 20); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		apply.Changes = append(apply.Changes, wire.Change{
			Op: owned.Add, Name: "m" + number(uint64(n)), Object: &wire.Object{File: n + 1}, Lifetime: owned.Permanent,
		})
	}
	if err := p.connect().call("Apply", apply, nil, files...); !errors.Is(err, xdp.ErrInvalid) {
		t.Errorf("32 MiB: %v", err)
	}
	if got := p.chain(); got != nil {
		t.Errorf("the chain is %v", got)
	}
	apply.Changes = apply.Changes[:4]
	if err := p.connect().call("Apply", apply, nil, files[:5]...); err != nil {
		t.Errorf("16 MiB: %v", err)
	}
	if got := p.chain(); !slices.Equal(got, []string{"m0", "m1", "m2", "m3"}) {
		t.Errorf("the chain is %v", got)
	}
	for _, name := range p.chain() {
		if err := p.connect().detach(name); err != nil {
			t.Error(err)
		}
	}
	p.empty()
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }
