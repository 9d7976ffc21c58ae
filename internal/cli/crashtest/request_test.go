package crashtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// floor is whose operation it is.
type floor string

const (
	byXDP     floor = "xdp"
	byArbiter floor = "arbiter"
	byCommand floor = "command"
)

// request is one change, for any floor.
type request struct {
	Floor floor
	// Verb is attach, replace or detach.
	Verb string
	// Dir is the state; empty for the arbiter's default.
	Dir string
	// Netns is empty for the test's own namespace.
	Netns     string
	Interface string
	// Object is the path of what is attached, and Program which of its programs.
	Object  string
	Program string
	// Name is what the attachment is called.
	Name   string
	Shared bool
	// PersistAs is the path of a second pin.
	PersistAs string
	// Foreign and Expect detach what somebody else attached.
	Expect  string
	Foreign bool
}

// acknowledgement is how the line begins that says that the change is made.
func (r request) acknowledgement() string {
	return map[string]string{"attach": "attached", "replace": "replaced", "detach": "detached"}[r.Verb] + " "
}

// acknowledged tells whether whoever asked has read that it is done.
func (r request) acknowledged(stdout string) bool {
	return strings.HasPrefix(stdout, r.acknowledgement()) && strings.HasSuffix(stdout, "\n")
}

// commandLine is the request to the command. The state is in the environment.
func (r request) commandLine() []string {
	args := []string{r.Verb, r.Interface}
	if r.Verb != "detach" {
		args = append(args, r.Object)
	}
	flags := map[string]string{"--netns": r.Netns, "--program": r.Program, "--expect": r.Expect}
	if r.Verb == "attach" {
		flags["--persist-as"] = r.PersistAs
	}
	for flag, value := range flags {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	if r.Verb == "attach" {
		args = append(args, "--name", r.Name)
	}
	if r.Shared && r.Verb == "attach" {
		args = append(args, "--shared", "--single")
	}
	if r.Foreign {
		args = append(args, "--foreign")
	}
	return args
}

func (r request) expectation() xdp.Expectation {
	var id uint32
	switch r.Expect {
	case "any":
		return xdp.Any
	case "":
		return xdp.Expectation{}
	}
	fmt.Sscan(r.Expect, &id)
	return xdp.ExpectID(id)
}

func performJSON(arg string) error {
	var r request
	if err := json.Unmarshal([]byte(arg), &r); err != nil {
		return err
	}
	return r.perform(os.Stdout)
}

// perform makes the change through the library, and says so.
func (r request) perform(stdout io.Writer) error {
	ns, err := xdp.OpenNamespace(r.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := ns.Hook(r.Interface, xdp.Auto)
	if err != nil {
		return err
	}
	var o *object.Object
	if r.Verb != "detach" {
		if o, err = object.Open(r.Object); err != nil {
			return err
		}
	}
	if r.Floor == byXDP {
		if err := r.xdp(h, o); err != nil {
			return err
		}
		_, err = fmt.Fprintf(stdout, "%s%s\n", r.acknowledgement(), r.Interface)
		return err
	}
	a, err := arbiter.Open(arbiter.Options{Dir: r.Dir})
	if err != nil {
		return err
	}
	defer a.Close()
	ack, err := r.arbiter(a, h, o)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(stdout, "%s%s\n", r.acknowledgement(), r.Interface); err != nil {
		return err
	}
	return ack()
}

func (r request) options() object.LoadOptions {
	return object.LoadOptions{Program: object.Choice{Name: r.Program}}
}

// load loads the object, nil for none.
func (r request) load(o *object.Object) (p *object.Loaded, close func(), err error) {
	if o == nil {
		return nil, func() {}, nil
	}
	if p, err = o.Load(r.options()); err != nil {
		return nil, nil, err
	}
	return p, func() { p.Close() }, nil
}

func (r request) arbiter(a *arbiter.Arbiter, h *xdp.Hook, o *object.Object) (arbiter.Acknowledge, error) {
	ctx := context.Background()
	at, err := a.At(h)
	if err != nil {
		return nil, err
	}
	chained := at != nil && at.Chain != nil
	change := arbiter.Change{Object: o, Load: r.options()}
	switch {
	case r.Verb == "attach" && !r.Shared:
		change.Change, change.PersistAs = owned.Change{Op: owned.Add, Name: r.Name}, r.PersistAs
		return r.apply(a, h, change)
	case r.Verb == "replace" && chained:
		m := at.Chain.Members[0]
		change.Change = owned.Change{Op: owned.Replace, Name: m.Name, Expect: m.Generation}
		return r.apply(a, h, change)
	case r.Verb == "detach" && chained:
		return r.apply(a, h, arbiter.Change{Change: owned.Change{Op: owned.Remove, Name: at.Chain.Members[0].Name}})
	}
	p, close, err := r.load(o)
	if err != nil {
		return nil, err
	}
	defer close()
	switch r.Verb {
	case "attach":
		return a.Attach(ctx, arbiter.AttachRequest{Hook: h, Program: p, Name: r.Name, Expect: r.expectation()})
	case "replace":
		return a.Replace(ctx, arbiter.ReplaceRequest{Hook: h, Program: p, Expect: xdp.ExpectID(at.Program.ID)})
	}
	return a.Detach(ctx, arbiter.DetachRequest{Hook: h, Foreign: r.Foreign, Expect: r.expectation()})
}

func (r request) apply(a *arbiter.Arbiter, h *xdp.Hook, c arbiter.Change) (arbiter.Acknowledge, error) {
	applied, err := a.Apply(context.Background(), arbiter.Transaction{Hook: h, Changes: []arbiter.Change{c}, Foreign: r.Foreign})
	if err != nil {
		return nil, err
	}
	if applied.Acknowledge == nil {
		return nil, errors.New("there was nothing to do")
	}
	return applied.Acknowledge, nil
}

// xdp makes the change without the arbiter.
func (r request) xdp(h *xdp.Hook, o *object.Object) error {
	p, close, err := r.load(o)
	if err != nil {
		return err
	}
	defer close()
	if r.Shared {
		return r.netlink(h, p)
	}
	return r.link(h, p)
}

// link makes the change with a link that is persisted at PersistAs, as a
// program does that looks first whether it was killed in the middle of it.
func (r request) link(h *xdp.Hook, p *object.Loaded) error {
	l, err := xdp.OpenPinned(r.PersistAs)
	found := err == nil
	if err != nil && !errors.Is(err, xdp.ErrNotFound) {
		return err
	}
	if found {
		defer l.Close()
	}
	switch {
	case r.Verb == "attach" && !found:
		if l, err = h.AttachLink(p.Program); err != nil {
			return err
		}
		defer l.Close()
		return l.Persist(r.PersistAs)
	case r.Verb == "replace":
		info, err := l.Info()
		if err != nil {
			return err
		}
		return l.Replace(xdp.ReplaceOptions{Program: p.Program, Expect: xdp.ExpectID(info.ProgramID), Hook: h})
	case r.Verb == "detach" && found:
		// In this order: the link ends with its last descriptor anyway.
		return errors.Join(os.Remove(r.PersistAs), l.Detach())
	}
	return nil
}

// netlink makes the change by netlink, with what it has read as expectation.
func (r request) netlink(h *xdp.Hook, p *object.Loaded) error {
	s, err := h.Query()
	if err != nil {
		return err
	}
	at := s.At(xdp.Auto)
	switch {
	case r.Verb == "detach" && at == nil:
		return nil
	case r.Verb == "detach":
		return h.Detach(xdp.ExpectID(at.Program.ID))
	case at == nil:
		return h.Attach(p.Program, xdp.Empty)
	default:
		return h.Attach(p.Program, xdp.ExpectID(at.Program.ID))
	}
}
