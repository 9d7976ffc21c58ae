// Package realize makes chains what files declare: it reads the objects that package
// declared only names, and has an arbiter change what differs.
package realize

import (
	"cmp"
	"context"
	"errors"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/declared"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Hook is a hook of a file, with its objects read.
type Hook struct {
	declared.Hook
	namespace *xdp.Namespace
	hook      *xdp.Hook
	objects   map[string]*object.Object
	wanted    declared.Programs
}

// Open finds the hook, in the namespace netns where the file names none, and reads its
// objects. The caller closes it.
func Open(h declared.Hook, netns string) (*Hook, error) {
	ns, err := xdp.OpenNamespace(cmp.Or(h.Namespace, netns))
	if err != nil {
		return nil, err
	}
	d := &Hook{Hook: h, namespace: ns, objects: map[string]*object.Object{}, wanted: declared.Programs{}}
	d.hook, err = ns.Hook(h.Interface, h.Mode)
	for _, m := range h.Members {
		if err == nil {
			err = d.open(m)
		}
	}
	if err != nil {
		ns.Close()
		return nil, err
	}
	return d, nil
}

// Close closes the hook's namespace.
func (d *Hook) Close() error { return d.namespace.Close() }

func (d *Hook) open(m declared.Member) error {
	o, err := object.Open(m.Object)
	if err != nil {
		return err
	}
	for _, v := range m.Assignments() {
		if err := o.Set(v); err != nil {
			return err
		}
	}
	d.objects[m.Name] = o
	d.wanted[m.Name], err = o.Digest(loadOptions(m))
	return err
}

func loadOptions(m declared.Member) object.LoadOptions {
	return object.LoadOptions{Program: object.Choice{Name: m.Program, Section: m.Section}}
}

// Result is what came of one hook.
type Result struct {
	Interface string     `json:"interface"`
	Namespace string     `json:"netns,omitempty"`
	DryRun    bool       `json:"dry_run,omitempty"`
	Changed   bool       `json:"changed"`
	Diff      owned.Diff `json:"diff"`
}

// Apply makes the hook what is declared, or tells with dryRun what that would take.
// With prune it takes out permanent members that are not declared. Acknowledge is nil
// where nothing was to be changed. The errors are those of [arbiter.Arbiter.Apply].
func (d *Hook) Apply(ctx context.Context, s arbiter.Service, prune, dryRun bool) (*Result, arbiter.Acknowledge, error) {
	// Others may change the chain between reading it and changing it; the
	// transaction expects what was read.
	const tries = 4
	for n := 1; ; n++ {
		result, ack, err := d.try(ctx, s, prune, dryRun)
		if n == tries || !errors.Is(err, owned.ErrGeneration) {
			return result, ack, err
		}
	}
}

func (d *Hook) try(ctx context.Context, service arbiter.Service, prune, dryRun bool) (*Result, arbiter.Acknowledge, error) {
	s, err := service.At(d.hook)
	if err != nil {
		return nil, nil, err
	}
	var now owned.Chain
	running := declared.Programs{}
	if s != nil {
		if s.Chain == nil {
			return nil, nil, service.Explain(d.hook, &xdp.Error{
				Op: "apply to", Hook: d.hook.String(), Err: xdp.ErrConflict, Rival: &s.Attachment,
				Detail: "the hook is not owned by Holdfast", Hint: "detach what is there, or adopt it",
			})
		}
		now = s.Chain.Model()
		for _, m := range s.Chain.Members {
			running[m.Name] = m.Digest
		}
	}
	t, err := declared.Plan(d.Hook, now, running, d.wanted, prune)
	if err != nil {
		return nil, nil, err
	}
	result := &Result{Interface: d.Interface, Namespace: d.namespace.Spec(), DryRun: dryRun, Changed: len(t.Changes) > 0 || t.Stats != nil}
	if dryRun || !result.Changed {
		t.MaxMembers = arbiter.MaxMembers
		would, err := now.Apply(t)
		result.Diff = would.Diff
		return result, nil, err
	}
	wanted := arbiter.Transaction{Hook: d.hook, Expect: t.Expect, Stats: t.Stats}
	if d.Engine != declared.Auto {
		wanted.Engine = arbiter.Engine(d.Engine)
	}
	for _, c := range t.Changes {
		change := arbiter.Change{Change: c}
		if o := d.objects[c.Name]; o != nil && (c.Op == owned.Add || c.Op == owned.Replace) {
			change.Object = o
			for _, m := range d.Members {
				if m.Name == c.Name {
					change.Load = loadOptions(m)
				}
			}
		}
		wanted.Changes = append(wanted.Changes, change)
	}
	applied, err := service.Apply(ctx, wanted)
	if err != nil {
		return nil, nil, err
	}
	result.Diff = applied.Diff
	return result, applied.Acknowledge, nil
}
