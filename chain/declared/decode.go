package declared

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/yamlfile"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Decode reads a file. The name stands for it in errors, which are [*Error] where
// the reader itself has none.
func Decode(name string, r io.Reader) (*File, error) {
	var f File
	if err := yamlfile.Read(name, r, f.decode); err != nil {
		return nil, err
	}
	return &f, nil
}

func (f *File) decode(root ast.Node) error {
	version := uint32(0)
	hooks := yamlfile.List("hooks", &f.Hooks, decodeHook)
	return yamlfile.Mapping(root, "the file", yamlfile.Fields{
		"version": {yamlfile.Required, func(n ast.Node) error { return yamlfile.Number(n, &version) }},
		"hooks":   {yamlfile.Required, hooks},
	}, func() error {
		switch {
		case version != 1:
			return yamlfile.At(root, fmt.Sprintf("the file is of version %d", version), "this Holdfast reads version 1")
		case len(f.Hooks) == 0:
			return yamlfile.At(root, "there are no hooks", "declare one, with members: [] if it shall have none")
		}
		return nil
	})
}

func decodeHook(n ast.Node, before []Hook) (Hook, error) {
	h := Hook{Engine: Auto}
	var members, stats ast.Node
	decodeMembers := yamlfile.List("members", &h.Members, decodeMember)
	err := yamlfile.Mapping(n, "a hook", yamlfile.Fields{
		"interface": {yamlfile.Required, yamlfile.Checked(&h.Interface, xdp.CheckName)},
		"netns":     {yamlfile.Optional, yamlfile.Checked(&h.Namespace, yamlfile.NotEmpty("the namespace"))},
		"mode":      {yamlfile.Optional, yamlfile.Choice(&h.Mode, xdp.Auto, xdp.Native, xdp.Generic, xdp.Offload)},
		"engine":    {yamlfile.Optional, yamlfile.Choice(&h.Engine, Auto, Live, Fused)},
		"drift":     {yamlfile.Optional, yamlfile.Choice(&h.Drift, Restore, Leave)},
		"exclusive": {yamlfile.Optional, func(n ast.Node) error { return yamlfile.Boolean(n, &h.Exclusive) }},
		"stats": {yamlfile.Optional, func(n ast.Node) error {
			stats, h.Stats = n, new(bool)
			return yamlfile.Boolean(n, h.Stats)
		}},
		"members": {yamlfile.Required, func(n ast.Node) error { members = n; return decodeMembers(n) }},
	}, func() error {
		if h.Exclusive && len(h.Members) != 1 {
			return yamlfile.At(members, fmt.Sprintf("the hook is exclusive and has %d members", len(h.Members)), "only one can have it to itself")
		}
		if h.Stats != nil && *h.Stats && len(h.Members) == 0 {
			return yamlfile.At(stats, "the chain counts and has no members", "leave it out")
		}
		for _, other := range before {
			if other.Interface == h.Interface && other.Namespace == h.Namespace && (other.Mode == xdp.Offload) == (h.Mode == xdp.Offload) {
				return yamlfile.At(n, fmt.Sprintf("%s is there already, in mode %s", h.Interface, other.Mode),
					"put all members into one: an interface has one chain, and one more on its card")
			}
		}
		return nil
	})
	return h, err
}

func decodeMember(n ast.Node, before []Member) (Member, error) {
	m := Member{Priority: chain.DefaultPriority, ProceedOn: chain.DefaultProceedOn}
	priority := n
	err := yamlfile.Mapping(n, "a member", yamlfile.Fields{
		"name":       {yamlfile.Required, yamlfile.Checked(&m.Name, owned.CheckName)},
		"object":     {yamlfile.Required, yamlfile.Checked(&m.Object, yamlfile.NotEmpty("the path of the object"))},
		"program":    {yamlfile.Optional, yamlfile.Checked(&m.Program, yamlfile.NotEmpty("the program's name"))},
		"section":    {yamlfile.Optional, yamlfile.Checked(&m.Section, yamlfile.NotEmpty("the section's name"))},
		"priority":   {yamlfile.Optional, func(n ast.Node) error { priority = n; return yamlfile.Number(n, &m.Priority) }},
		"proceed-on": {yamlfile.Optional, func(n ast.Node) error { return actions(n, &m.ProceedOn) }},
		"set":        {yamlfile.Optional, func(n ast.Node) error { return variables(n, &m.Variables) }},
	}, func() error {
		if m.Program != "" && m.Section != "" {
			return yamlfile.At(n, "both program and section are given", "one chooses the program")
		}
		if slices.ContainsFunc(before, func(other Member) bool { return other.Name == m.Name }) {
			return yamlfile.At(n, fmt.Sprintf("the chain has a member %q already", m.Name), "choose another name")
		}
		if len(before) > 0 && m.Priority < before[len(before)-1].Priority {
			last := before[len(before)-1]
			return yamlfile.At(priority, fmt.Sprintf("%q has priority %d and comes after %q, which has %d", m.Name, m.Priority, last.Name, last.Priority),
				"members are listed in the order that they run in, the lowest priority first")
		}
		return nil
	})
	return m, err
}

// actions reads a list of actions by name.
func actions(n ast.Node, into *chain.Actions) error {
	var set chain.Actions
	var all []chain.Action
	err := yamlfile.List("actions, as in [XDP_PASS]", &all, func(n ast.Node, _ []chain.Action) (chain.Action, error) {
		var name string
		if err := yamlfile.Text(n, &name); err != nil {
			return 0, err
		}
		a, err := chain.ParseAction(name)
		switch {
		case err != nil:
			return 0, yamlfile.At(n, err.Error(), "name one of these")
		case set.Has(a):
			return 0, yamlfile.At(n, fmt.Sprintf("%s is there twice", a), "remove one")
		}
		set = set.With(a)
		return a, nil
	})(n)
	if err == nil {
		*into = set
	}
	return err
}

// variables reads values by names. A value is taken as it is written, whatever
// YAML takes it for: its type is the variable's.
func variables(n ast.Node, into *map[string]string) error {
	const hint = "it has names and values, as in drop_port: 53"
	m, ok := n.(*ast.MappingNode)
	if !ok {
		return yamlfile.Need(n, "variables", hint)
	}
	set := map[string]string{}
	for _, v := range m.Values {
		key, ok := v.Key.(*ast.StringNode)
		if !ok {
			return yamlfile.Need(v.Key, "the name of a variable", hint)
		}
		name := key.Value
		if name == "" || strings.ContainsAny(name, "= ") {
			return yamlfile.At(key, fmt.Sprintf("%q can't be the name of a variable", name), hint)
		}
		if _, ok := set[name]; ok {
			return yamlfile.At(key, fmt.Sprintf("%q is set twice", name), "remove one")
		}
		switch value := v.Value.(type) {
		case *ast.StringNode:
			set[name] = value.Value
		case *ast.LiteralNode:
			set[name] = value.Value.Value
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
			set[name] = v.Value.GetToken().Value
		default:
			return yamlfile.Need(v.Value, "a value", hint)
		}
	}
	if len(set) > 0 {
		*into = set
	}
	return nil
}
