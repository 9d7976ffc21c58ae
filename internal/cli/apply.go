package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/declared"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) applyCommand() *cobra.Command {
	var path, netns string
	var dryRun, prune bool
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make the chains of owned hooks what a file declares",
		Long: `Make the chains of owned hooks what a file declares: add the members that are
missing, replace those whose object is another, and set what else differs. What is
as declared is not touched. For each hook all of it happens in one step, or
nothing does.

Members that are not declared stay, unless --prune takes them out. Those that a
process holds stay always. Each hook is a transaction of its own: the hooks before
one that fails are as declared, and those behind it as they were.

The file is YAML, with paths relative to it:

  version: 1
  hooks:
  - interface: eth0
    members:                # in the order that they run in
    - name: filter
      object: filter.o
      priority: 10          # 50 if it is not given
      proceed-on: [XDP_PASS]
      set: {drop_port: "53"}
    - name: sample
      object: sample.o

A hook can also have netns, mode (native, generic), engine (live, fused) and
exclusive, and a member program or section. 'holdfast export' writes such a file.`,
		Example: `  holdfast apply -f chains.yaml --dry-run
  holdfast apply -f chains.yaml --prune`,
		Args: exactly(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if path == "" {
				return usagef("-f is missing: the file that declares the chains")
			}
			file, err := a.readDeclared(path)
			if err != nil {
				return err
			}
			open := arbiter.Open
			if dryRun {
				open = arbiter.OpenReadOnly
			}
			state, err := open(a.stateOptions())
			if err != nil {
				return err
			}
			defer state.Close()
			// What is wrong in the last hook is told before the first is changed.
			var hooks []*declaredHook
			for _, h := range file.Hooks {
				d, err := openDeclared(h, netns)
				if err != nil {
					return err
				}
				defer d.namespace.Close()
				hooks = append(hooks, d)
			}
			var results []appliedResult
			for _, d := range hooks {
				result, ack, err := a.applyDeclared(c.Context(), state, d, prune, dryRun)
				if err != nil {
					return errors.Join(a.printApplied(results), err)
				}
				results = append(results, *result)
				if ack != nil {
					defer a.acknowledge(ack) // once it is printed
				}
			}
			return a.printApplied(results)
		},
	}
	flags := c.Flags()
	flags.StringVarP(&path, "file", "f", "", "the file that declares the chains, or - for standard input")
	flags.StringVar(&netns, "netns", "", "network namespace of the interfaces for which the file names none: a name, a path or a pid")
	flags.BoolVar(&dryRun, "dry-run", false, "tell what would change, and change nothing")
	flags.BoolVar(&prune, "prune", false, "take out members that are not declared")
	return c
}

func (a *app) readDeclared(path string) (*declared.File, error) {
	if path == "-" {
		return declared.Decode("standard input", a.env.Stdin)
	}
	return declared.Read(path)
}

// declaredHook is a hook of a file, with its objects read.
type declaredHook struct {
	declared.Hook
	namespace *xdp.Namespace
	hook      *xdp.Hook
	objects   map[string]*object.Object
	wanted    declared.Programs
}

func openDeclared(h declared.Hook, netns string) (*declaredHook, error) {
	ns, err := xdp.OpenNamespace(cmp.Or(h.Namespace, netns))
	if err != nil {
		return nil, err
	}
	d := &declaredHook{Hook: h, namespace: ns, objects: map[string]*object.Object{}, wanted: declared.Programs{}}
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

func (d *declaredHook) open(m declared.Member) error {
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

// applyDeclared makes one hook what is declared, or tells what that would take.
func (a *app) applyDeclared(ctx context.Context, state *arbiter.Arbiter, d *declaredHook, prune, dryRun bool) (*appliedResult, arbiter.Acknowledge, error) {
	// Others may change the chain between reading it and changing it; the
	// transaction expects what was read.
	const tries = 4
	for n := 1; ; n++ {
		result, ack, err := a.tryDeclared(ctx, state, d, prune, dryRun)
		if n == tries || !errors.Is(err, owned.ErrGeneration) {
			return result, ack, err
		}
	}
}

func (a *app) tryDeclared(ctx context.Context, state *arbiter.Arbiter, d *declaredHook, prune, dryRun bool) (*appliedResult, arbiter.Acknowledge, error) {
	s, err := state.At(d.hook)
	if err != nil {
		return nil, nil, err
	}
	var now owned.Chain
	running := declared.Programs{}
	if s != nil {
		if s.Chain == nil {
			return nil, nil, state.Explain(d.hook, &xdp.Error{
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
	result := &appliedResult{Interface: d.Interface, Namespace: d.namespace.Spec(), DryRun: dryRun, Changed: len(t.Changes) > 0}
	if dryRun || !result.Changed {
		t.MaxMembers = arbiter.MaxMembers
		would, err := now.Apply(t)
		result.Diff = would.Diff
		return result, nil, err
	}
	wanted := arbiter.Transaction{Hook: d.hook, Expect: t.Expect}
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
	a.raiseMemlock()
	applied, err := state.Apply(ctx, wanted)
	if err != nil {
		return nil, nil, err
	}
	result.Diff = applied.Diff
	return result, applied.Acknowledge, nil
}

// appliedResult is what came of one hook.
type appliedResult struct {
	Interface string     `json:"interface"`
	Namespace string     `json:"netns,omitempty"`
	DryRun    bool       `json:"dry_run,omitempty"`
	Changed   bool       `json:"changed"`
	Diff      owned.Diff `json:"diff"`
}

func (a *app) printApplied(results []appliedResult) error {
	if a.output == "json" {
		return a.printJSON("applied", results)
	}
	for _, r := range results {
		what := "is as declared"
		switch {
		case r.Changed && r.DryRun:
			what = "would change"
		case r.Changed:
			what = "changed"
		}
		if _, err := fmt.Fprintf(a.env.Stdout, "%s %s\n%s", r.Interface, what, r.Diff); err != nil {
			return err
		}
	}
	return nil
}
