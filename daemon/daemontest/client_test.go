package daemontest

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	holdfastclient "github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// app is an application that uses the client.
type app struct {
	*place
	client *holdfastclient.Client
	hook   *xdp.Hook

	mutex   sync.Mutex
	notices []holdfastclient.Notice
}

func (p *place) app() *app {
	p.Helper()
	a := &app{place: p}
	c, err := holdfastclient.Open(p.Context(), holdfastclient.Options{Socket: p.socket, Notify: func(n holdfastclient.Notice) {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		a.notices = append(a.notices, n)
	}})
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { c.Close() })
	a.client = c
	ns, err := xdp.OpenNamespace(p.veth.Near.Path())
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { ns.Close() })
	if a.hook, err = ns.Hook(p.veth.NearName, xdp.Auto); err != nil {
		p.Fatal(err)
	}
	return a
}

func (a *app) kinds() []holdfastclient.NoticeKind {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	var all []holdfastclient.NoticeKind
	for _, n := range a.notices {
		all = append(all, n.Kind)
	}
	return all
}

// last is what has happened to a member last.
func (a *app) last(name string) holdfastclient.NoticeKind {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	for _, n := range slices.Backward(a.notices) {
		if n.Member == name {
			return n.Kind
		}
	}
	return ""
}

func (a *app) change(op owned.Op, name, file string, lifetime owned.Lifetime) arbiter.Transaction {
	a.Helper()
	c := arbiter.Change{Change: owned.Change{Op: op, Name: name, Lifetime: lifetime}}
	if file != "" {
		o, err := object.Open(kerneltest.ObjectFile(a, file))
		if err != nil {
			a.Fatal(err)
		}
		c.Object = o
	}
	return arbiter.Transaction{Hook: a.hook, Changes: []arbiter.Change{c}}
}

func (a *app) hold(name string) arbiter.Handle {
	a.Helper()
	applied, err := a.client.Apply(a.Context(), a.change(owned.Add, name, "count", owned.Held))
	if err != nil {
		a.Fatal(err)
	}
	if len(applied.Held) != 1 {
		a.Fatalf("%d members are held", len(applied.Held))
	}
	return applied.Held[0]
}

func TestTheClientDoesWhatTheArbiterDoes(t *testing.T) {
	p := newPlace(t)
	a := p.app()
	ctx := t.Context()
	applied, err := a.client.Apply(ctx, a.change(owned.Add, "a", "pass", owned.Permanent))
	if err != nil {
		t.Fatal(err)
	}
	// Asked for again before it was acknowledged, as by who was killed, it is done.
	if _, err := a.client.Apply(ctx, a.change(owned.Add, "a", "pass", owned.Permanent)); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := applied.Acknowledge(); err != nil {
		t.Error(err)
	}
	if _, err := a.client.Apply(ctx, a.change(owned.Add, "a", "pass", owned.Permanent)); !errors.Is(err, owned.ErrExists) {
		t.Errorf("after it was acknowledged: %v", err)
	}
	if c, err := a.client.Chain(a.hook); err != nil || len(c.Members) != 1 || c.Members[0].Name != "a" {
		t.Errorf("the chain is %+v, error %v", c, err)
	}
	all, err := a.client.Status([]*xdp.Namespace{a.hook.Namespace()})
	if err != nil || len(all) != 1 || all[0].Chain == nil {
		t.Errorf("the status is %+v, error %v", all, err)
	}
	dry := a.change(owned.Remove, "a", "", "")
	dry.DryRun = true
	if applied, err := a.client.Apply(ctx, dry); err != nil || len(applied.Diff.Members) != 1 {
		t.Errorf("dry: %+v, error %v", applied, err)
	}
	if found, err := a.client.Features(ctx); err != nil || len(found) == 0 {
		t.Errorf("features: %v, error %v", found, err)
	}
	if answer, err := a.client.May(ctx, holdfastclient.Question{Verb: arbiter.VerbAttach, Hook: a.hook}); err != nil || !answer.Allowed {
		t.Errorf("may: %+v, error %v", answer, err)
	}
	applied, err = a.client.Apply(ctx, a.change(owned.Remove, "a", "", ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := applied.Acknowledge(); err != nil {
		t.Error(err)
	}
	ack, err := a.client.Lock(ctx, a.hook)
	if err != nil {
		t.Fatal(err)
	}
	if err := ack(); err != nil {
		t.Error(err)
	}
	if _, err := a.client.Apply(ctx, a.change(owned.Add, "a", "pass", owned.Permanent)); !errors.Is(err, owned.ErrLocked) {
		t.Errorf("attached where it is locked: %v", err)
	}
	if ack, err = a.client.Unlock(ctx, a.hook); err != nil {
		t.Fatal(err)
	}
	if err := ack(); err != nil {
		t.Error(err)
	}
	p.empty()
}

func TestWithoutADaemonTheClientSaysSo(t *testing.T) {
	_, err := holdfastclient.Open(t.Context(), holdfastclient.Options{Socket: filepath.Join(t.TempDir(), "none")})
	if !errors.Is(err, holdfastclient.ErrNoDaemon) {
		t.Errorf("got %v", err)
	}
}

func TestWhatAClientHoldsSurvivesTheDaemon(t *testing.T) {
	p := newPlace(t)
	a := p.app()
	h := a.hold("a")
	other := a.hold("b")
	if len(h.Maps()) == 0 {
		t.Error("the holder has no maps")
	}
	for range 3 {
		p.stop()
		eventually(t, "both to have lost the daemon", func() bool {
			return a.last("a") == holdfastclient.Lost && a.last("b") == holdfastclient.Lost
		})
		if got := p.chain(); !slices.Equal(got, []string{"a", "b"}) {
			t.Fatalf("without the daemon the chain is %v", got)
		}
		p.start()
		eventually(t, "both to be claimed", func() bool { return a.last("a") == holdfastclient.Claimed && a.last("b") == holdfastclient.Claimed })
	}
	if err := h.Remove(context.Background(), a.hook); err != nil {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if got := p.chain(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("the chain is %v", got)
	}
	if other.Err() != nil {
		t.Errorf("the other one has ended: %v", other.Err())
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	p.empty()
}

func TestAHolderIsToldWhenItsMemberIsTakenOut(t *testing.T) {
	p := newPlace(t)
	a := p.app()
	h := a.hold("a")
	out := a.change(owned.Remove, "a", "", "")
	out.Foreign = true
	applied, err := p.app().client.Apply(t.Context(), out)
	if err != nil {
		t.Fatal(err)
	}
	if err := applied.Acknowledge(); err != nil {
		t.Error(err)
	}
	<-h.Done()
	if !errors.Is(h.Err(), xdp.ErrGone) {
		t.Errorf("it has ended because of %v", h.Err())
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	p.empty()
}

func TestAHolderTakesOverANewLink(t *testing.T) {
	p := newPlace(t)
	a := p.app()
	first := a.change(owned.Add, "a", "count", owned.Held)
	first.Engine = arbiter.Fused
	applied, err := a.client.Apply(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	h := applied.Held[0]
	second := a.change(owned.Add, "b", "pass", owned.Permanent)
	second.Engine = arbiter.Live
	moved, err := a.client.Apply(t.Context(), second)
	if errors.Is(err, object.ErrExtension) {
		h.Close()
		t.Skip("the kernel replaces no functions of programs")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := moved.Acknowledge(); err != nil {
		t.Error(err)
	}
	eventually(t, "the new link to be taken over", func() bool { return slices.Contains(a.kinds(), holdfastclient.Moved) })
	if got := p.chain(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("the chain is %v", got)
	}
	p.stop() // the kernel alone has it from now on
	h.Close()
	eventually(t, "a to have ended", func() bool { return slices.Equal(p.chain(), []string{"b"}) })
	p.start()
	if err := p.connect().detach("b"); err != nil {
		t.Error(err)
	}
	p.empty()
}

// The daemon never sees the object of who loads it itself.
func TestAClientLoadsItsMemberItself(t *testing.T) {
	p := newPlace(t)
	a := p.app()
	slot, err := a.client.Slot(t.Context(), a.hook)
	if errors.Is(err, xdp.ErrNotSupported) {
		t.Skip("the kernel replaces no functions of programs")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Target.Close()
	o, err := object.Open(kerneltest.ObjectFile(t, "count"))
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := o.Load(object.LoadOptions{Extend: &slot})
	if errors.Is(err, object.ErrExtension) {
		t.Skip("the kernel replaces no functions of programs")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	change := func(c owned.Change) arbiter.Transaction {
		return arbiter.Transaction{Hook: a.hook, Changes: []arbiter.Change{{Change: c, Extension: loaded.Program}}}
	}
	if _, err := a.client.Apply(t.Context(), change(owned.Change{Op: owned.Add, Name: "own", Lifetime: owned.Permanent})); !errors.Is(err, owned.ErrInvalid) {
		t.Errorf("a permanent one: %v", err)
	}
	applied, err := a.client.Apply(t.Context(), change(owned.Change{Op: owned.Add, Name: "own", Lifetime: owned.Held}))
	if err != nil {
		t.Fatal(err)
	}
	h := applied.Held[0]
	other := a.change(owned.Add, "other", "pass", owned.Permanent)
	moved, err := a.client.Apply(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if err := moved.Acknowledge(); err != nil {
		t.Error(err)
	}
	if got := p.chain(); !slices.Equal(got, []string{"own", "other"}) {
		t.Errorf("the chain is %v", got)
	}
	replaced := change(owned.Change{Op: owned.Replace, Name: "other"})
	if _, err := a.client.Apply(t.Context(), replaced); !errors.Is(err, owned.ErrInvalid) {
		t.Errorf("in place of a permanent one: %v", err)
	}
	wrong := change(owned.Change{Op: owned.Add, Name: "wrong", Lifetime: owned.Held})
	wrong.Changes[0].Extension = kerneltest.Pass(t, "wrong", nil)
	if _, err := a.client.Apply(t.Context(), wrong); !errors.Is(err, owned.ErrInvalid) {
		t.Errorf("a program that is no extension: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "it to be gone", func() bool { return slices.Equal(p.chain(), []string{"other"}) })
	if err := p.connect().detach("other"); err != nil {
		t.Error(err)
	}
	p.empty()
}

// Who loads its member itself is held to the rules like others.
func TestAnOwnProgramIsNoWayAroundThePolicy(t *testing.T) {
	p := newPlace(t)
	p.write("policy.yaml", "version: 1\nrules:\n- name: late\n  match: {uid: [0]}\n  allow: {verbs: [attach, detach], priority: 80-99}\n")
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	a := p.app()
	if answer, err := a.client.May(t.Context(), holdfastclient.Question{Verb: arbiter.VerbAttach, Hook: a.hook}); err != nil || answer.Allowed {
		t.Errorf("may: %+v, error %v", answer, err)
	}
	if _, err := a.client.Apply(t.Context(), a.change(owned.Add, "plain", "count", owned.Held)); !errors.Is(err, xdp.ErrPermission) {
		t.Errorf("by its object: %v", err)
	}
	slot, err := a.client.Slot(t.Context(), a.hook)
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Target.Close()
	o, err := object.Open(kerneltest.ObjectFile(t, "count"))
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := o.Load(object.LoadOptions{Extend: &slot})
	if errors.Is(err, object.ErrExtension) {
		t.Skip("the kernel replaces no functions of programs")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	own := arbiter.Transaction{Hook: a.hook, Changes: []arbiter.Change{{
		Change: owned.Change{Op: owned.Add, Name: "own", Lifetime: owned.Held}, Extension: loaded.Program,
	}}}
	refused := func(what string) {
		t.Helper()
		applied, err := a.client.Apply(t.Context(), own)
		if err == nil {
			applied.Held[0].Close()
		}
		if !errors.Is(err, xdp.ErrPermission) {
			t.Errorf("loaded by itself, %s: %v", what, err)
		}
	}
	refused("with the priority that it has where none is said")
	allow := func(quota string) {
		t.Helper()
		p.write("policy.yaml", "version: 1\nrules:\n- name: quota\n  match: {uid: [0]}\n  allow: {verbs: [attach, detach], quota: {"+quota+"}}\n")
		if err := p.daemon.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	allow("instructions: 1")
	refused("with more instructions than it may have")
	allow("map-memory: " + number(memory(t, "count")-1))
	refused("with more memory on all processors than it may have")
	allow("instructions: 50, map-memory: " + number(memory(t, "count")))
	applied, err := a.client.Apply(t.Context(), own)
	if err != nil {
		t.Fatalf("loaded by itself, with what it may have: %v", err)
	}
	if err := applied.Held[0].Close(); err != nil {
		t.Error(err)
	}
	p.empty()
}
