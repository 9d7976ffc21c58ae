package holdfast_test

import (
	"context"
	"errors"
	"testing"

	"github.com/holdfast-bpf/holdfast"
	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func TestMain(m *testing.M) { kerneltest.Main(m, nil) }

// place is an arbiter with a state of its own, and a hook.
func place(t *testing.T) (holdfast.Arbiter, holdfast.Hook) {
	t.Helper()
	kerneltest.NoLeaks(t)
	v := kerneltest.NewVeth(t)
	a, err := holdfast.Open(arbiter.Options{Dir: kerneltest.BPFFS(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a, holdfast.Hook{Interface: v.NearName, Namespace: v.Near.Path()}
}

func TestAMemberIsThereForAsLongAsItIsOpen(t *testing.T) {
	a, hook := place(t)
	ctx := context.Background()
	attach := func(object, name string, permanent bool) holdfast.Member {
		t.Helper()
		m, err := holdfast.Attach(ctx, hook.Interface, kerneltest.ObjectFile(t, object), holdfast.Options{
			Arbiter: a, Hook: hook, Name: name, Permanent: permanent,
		})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	want := func(names ...string) {
		t.Helper()
		c, err := a.Chain(ctx, hook)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Members) != len(names) {
			t.Fatalf("the chain is %v, want %v", c.Members, names)
		}
		for i, m := range c.Members {
			if m.Name != names[i] {
				t.Errorf("the chain is %v, want %v", c.Members, names)
			}
		}
	}
	one := attach("pass", "one", false)
	want("one")
	if m := attach("pass", "stays", true); m != nil {
		t.Errorf("a permanent member has a handle: %v", m)
	}
	want("one", "stays")
	if _, err := holdfast.Attach(ctx, hook.Interface, kerneltest.ObjectFile(t, "pass"), holdfast.Options{Arbiter: a, Hook: hook, Name: "one"}); !errors.Is(err, owned.ErrExists) {
		t.Errorf("a second of that name: %v", err)
	}
	if one.Err() != nil {
		t.Error(one.Err())
	}
	if err := errors.Join(one.Close(), one.Close()); err != nil {
		t.Error(err)
	}
	want("stays")
	// What somebody else takes out tells its holder.
	two := attach("pass", "two", false)
	remove := func(name string) {
		t.Helper()
		_, err := a.Apply(ctx, holdfast.Transaction{Hook: hook, Foreign: true, Changes: []arbiter.Change{
			{Change: owned.Change{Op: owned.Remove, Name: name}},
		}})
		if err != nil {
			t.Fatal(err)
		}
	}
	remove("two")
	<-two.Done()
	if err := two.Err(); !errors.Is(err, xdp.ErrGone) {
		t.Errorf("the holder is told %v", err)
	}
	if err := two.Close(); err != nil {
		t.Error(err)
	}
	remove("stays")
	want()
}

func TestALockedHookIsNotForMembers(t *testing.T) {
	a, hook := place(t)
	ctx := context.Background()
	if err := a.Lock(ctx, hook); err != nil {
		t.Fatal(err)
	}
	_, err := holdfast.Attach(ctx, hook.Interface, kerneltest.ObjectFile(t, "pass"), holdfast.Options{Arbiter: a, Hook: hook})
	if !errors.Is(err, owned.ErrLocked) {
		t.Errorf("a member of a locked hook: %v", err)
	}
	if err := a.Unlock(ctx, hook); err != nil {
		t.Fatal(err)
	}
}
