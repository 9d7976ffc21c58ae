package daemontest

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/object"
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

func number(n uint64) string { return strconv.FormatUint(n, 10) }
