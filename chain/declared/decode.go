package declared

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Decode reads a file. The name stands for it in errors, which are [*Error] where
// the reader itself has none.
func Decode(name string, r io.Reader) (*File, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	f, err := decode(b)
	if e := (*Error)(nil); errors.As(err, &e) {
		e.File = name
	}
	return f, err
}

func decode(b []byte) (*File, error) {
	root, err := parse(b)
	if err != nil {
		return nil, err
	}
	var f File
	version := uint32(0)
	hooks := list("hooks", &f.Hooks, decodeHook)
	err = mapping(root, "the file", fields{
		"version": {required, func(n ast.Node) error { return number(n, &version) }},
		"hooks":   {required, hooks},
	}, func() error {
		switch {
		case version != 1:
			return at(root, fmt.Sprintf("the file is of version %d", version), "this Holdfast reads version 1")
		case len(f.Hooks) == 0:
			return at(root, "there are no hooks", "declare one, with members: [] if it shall have none")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &f, nil
}

func decodeHook(n ast.Node, before []Hook) (Hook, error) {
	h := Hook{Engine: Auto}
	var members ast.Node
	decodeMembers := list("members", &h.Members, decodeMember)
	err := mapping(n, "a hook", fields{
		"interface": {required, checked(&h.Interface, xdp.CheckName)},
		"netns":     {optional, checked(&h.Namespace, notEmpty("the namespace"))},
		"mode":      {optional, choice(&h.Mode, xdp.Auto, xdp.Native, xdp.Generic, xdp.Offload)},
		"engine":    {optional, choice(&h.Engine, Auto, Live, Fused)},
		"exclusive": {optional, func(n ast.Node) error { return boolean(n, &h.Exclusive) }},
		"members":   {required, func(n ast.Node) error { members = n; return decodeMembers(n) }},
	}, func() error {
		if h.Exclusive && len(h.Members) != 1 {
			return at(members, fmt.Sprintf("the hook is exclusive and has %d members", len(h.Members)), "only one can have it to itself")
		}
		for _, other := range before {
			if other.Interface == h.Interface && other.Namespace == h.Namespace && (other.Mode == xdp.Offload) == (h.Mode == xdp.Offload) {
				return at(n, fmt.Sprintf("%s is there already, in mode %s", h.Interface, other.Mode),
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
	err := mapping(n, "a member", fields{
		"name":       {required, checked(&m.Name, owned.CheckName)},
		"object":     {required, checked(&m.Object, notEmpty("the path of the object"))},
		"program":    {optional, checked(&m.Program, notEmpty("the program's name"))},
		"section":    {optional, checked(&m.Section, notEmpty("the section's name"))},
		"priority":   {optional, func(n ast.Node) error { priority = n; return number(n, &m.Priority) }},
		"proceed-on": {optional, func(n ast.Node) error { return actions(n, &m.ProceedOn) }},
		"set":        {optional, func(n ast.Node) error { return variables(n, &m.Variables) }},
	}, func() error {
		if m.Program != "" && m.Section != "" {
			return at(n, "both program and section are given", "one chooses the program")
		}
		if slices.ContainsFunc(before, func(other Member) bool { return other.Name == m.Name }) {
			return at(n, fmt.Sprintf("the chain has a member %q already", m.Name), "choose another name")
		}
		if len(before) > 0 && m.Priority < before[len(before)-1].Priority {
			last := before[len(before)-1]
			return at(priority, fmt.Sprintf("%q has priority %d and comes after %q, which has %d", m.Name, m.Priority, last.Name, last.Priority),
				"members are listed in the order that they run in, the lowest priority first")
		}
		return nil
	})
	return m, err
}

// maxDepth is how deep values may be nested. A file needs no more than 6.
const maxDepth = 16

// parse reads one YAML document.
func parse(b []byte) (root ast.Node, err error) {
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	if len(b) > MaxSize {
		return nil, &Error{Detail: fmt.Sprintf("it is bigger than %d KiB", MaxSize>>10), Hint: "split it"}
	}
	if err := checkText(b); err != nil {
		return nil, err
	}
	// The parser was not made for what others write: it must never bring down
	// the process that reads it.
	defer func() {
		if p := recover(); p != nil {
			root, err = nil, &Error{Detail: fmt.Sprintf("it is no YAML that can be understood: %v", p), Hint: hintSyntax}
		}
	}()
	tokens := lexer.Tokenize(string(b))
	if err := checkDepth(tokens); err != nil {
		return nil, err
	}
	f, err := parser.Parse(tokens, 0)
	var syntax yaml.Error
	switch {
	case errors.As(err, &syntax) && syntax.GetToken() != nil:
		p := syntax.GetToken().Position
		return nil, &Error{Line: p.Line, Column: p.Column, Detail: syntax.GetMessage(), Hint: hintSyntax}
	case err != nil:
		return nil, &Error{Detail: err.Error(), Hint: hintSyntax}
	}
	for _, d := range f.Docs {
		switch {
		case d.Body == nil:
		case root != nil:
			return nil, at(d.Body, "a second document begins", "a file is one document")
		default:
			root = d.Body
		}
	}
	if root == nil {
		return nil, &Error{Detail: "it is empty", Hint: "it begins with version: 1"}
	}
	return root, nil
}

const hintSyntax = "see the documentation of YAML, or write a file with `holdfast export` and change it"

// checkText refuses what is no text, which the lexer lets pass.
func checkText(b []byte) error {
	line, column := 1, 0
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		column++
		if r == utf8.RuneError && size == 1 {
			return &Error{Line: line, Column: column, Detail: fmt.Sprintf("byte %#x is not UTF-8", b[0]), Hint: "save it as UTF-8"}
		}
		if r < ' ' && r != '\n' && r != '\r' && r != '\t' || r == 0x7f {
			return &Error{Line: line, Column: column, Detail: fmt.Sprintf("%q can't be in a text", r), Hint: "write it as an escape, in double quotes"}
		}
		if r == '\n' {
			line, column = line+1, 0
		}
		b = b[size:]
	}
	return nil
}

// checkDepth refuses deep nesting, for which the parser takes a time that grows
// with its square.
func checkDepth(tokens token.Tokens) error {
	depth, entries, line := 0, 0, 0
	for _, t := range tokens {
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		case token.SequenceEntryType, token.MappingKeyType:
			if t.Position.Line != line {
				line, entries = t.Position.Line, 0
			}
			entries++
		}
		if depth > maxDepth || entries > maxDepth {
			return &Error{Line: t.Position.Line, Column: t.Position.Column, Detail: "values are nested too deeply", Hint: hintSyntax}
		}
	}
	return nil
}

// at is an error at the node.
func at(n ast.Node, detail, hint string) *Error {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 {
		n = m.Values[0].Key // its own position is that of its first colon
	}
	p := n.GetToken().Position
	return &Error{Line: p.Line, Column: p.Column, Detail: detail, Hint: hint}
}

// need says what a node should have been.
func need(n ast.Node, wanted, hint string) *Error {
	var is string
	switch n := n.(type) {
	case *ast.MappingNode:
		is = "keys and values"
	case *ast.SequenceNode:
		is = "a list"
	case *ast.NullNode:
		is = "nothing"
	case *ast.StringNode:
		is = fmt.Sprintf("the text %q", n.Value)
	case *ast.LiteralNode:
		is = "a text of several lines"
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode, *ast.TagNode:
		return at(n, "anchors, aliases and tags are not taken", "write out what is meant")
	case ast.ScalarNode:
		is = n.GetToken().Value
	default:
		is = "something else"
	}
	return at(n, fmt.Sprintf("this must be %s, and is %s", wanted, is), hint)
}

// fields are the keys of a mapping, with what reads their values.
type fields map[string]struct {
	how  presence
	read func(ast.Node) error
}

type presence bool

const (
	required presence = true
	optional presence = false
)

// mapping reads the keys of a node that is called what, and checks at the end.
func mapping(n ast.Node, what string, known fields, check func() error) error {
	var keys []string
	for k := range known {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	m, ok := n.(*ast.MappingNode)
	if !ok {
		return need(n, "keys and values", what+" has "+strings.Join(keys, ", "))
	}
	seen := map[string]bool{}
	for _, v := range m.Values {
		key, ok := v.Key.(*ast.StringNode)
		if !ok {
			return need(v.Key, "a key", "there are "+strings.Join(keys, ", "))
		}
		field, ok := known[key.Value]
		switch {
		case !ok:
			return at(key, fmt.Sprintf("%s has no %q", what, key.Value), "it has "+strings.Join(keys, ", "))
		case seen[key.Value]:
			return at(key, fmt.Sprintf("%q is there twice", key.Value), "remove one")
		}
		seen[key.Value] = true
		if err := field.read(v.Value); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if known[k].how == required && !seen[k] {
			return at(n, fmt.Sprintf("%s is missing its %q", what, k), "give it")
		}
	}
	return check()
}

// list reads the elements of a list, each with those before it.
func list[T any](name string, into *[]T, read func(n ast.Node, before []T) (T, error)) func(ast.Node) error {
	return func(n ast.Node) error {
		s, ok := n.(*ast.SequenceNode)
		if !ok {
			return need(n, "a list of "+name, "each begins with a dash; [] is an empty one")
		}
		for _, v := range s.Values {
			element, err := read(v, *into)
			if err != nil {
				return err
			}
			*into = append(*into, element)
		}
		return nil
	}
}

// text reads a scalar that YAML takes for a text.
func text(n ast.Node, into *string) error {
	switch n := n.(type) {
	case *ast.StringNode:
		*into = n.Value
		return nil
	case *ast.LiteralNode:
		*into = n.Value.Value
		return nil
	case *ast.NullNode:
		return need(n, "a text", "give one, or leave the key out")
	}
	return need(n, "a text", "put it into quotes")
}

// checked reads a text that the check accepts.
func checked(into *string, check func(string) error) func(ast.Node) error {
	return func(n ast.Node) error {
		if err := text(n, into); err != nil {
			return err
		}
		if err := check(*into); err != nil {
			return at(n, err.Error(), "give another one")
		}
		return nil
	}
}

// notEmpty refuses the empty text, and characters that no path or name has.
func notEmpty(what string) func(string) error {
	return func(s string) error {
		switch {
		case s == "":
			return errors.New(what + " is empty")
		case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return fmt.Errorf("%s, %q, has characters that can't be seen", what, s)
		}
		return nil
	}
}

// number reads a number as it is written in decimal, and nothing that could be
// read in two ways.
func number(n ast.Node, into *uint32) error {
	const wanted, hint = "a number", "it is from 0 to 4294967295, in decimal"
	if _, ok := n.(*ast.IntegerNode); !ok {
		return need(n, wanted, hint)
	}
	v, err := strconv.ParseUint(n.GetToken().Value, 10, 32)
	if err != nil || strconv.FormatUint(v, 10) != n.GetToken().Value {
		return need(n, wanted, hint)
	}
	*into = uint32(v)
	return nil
}

func boolean(n ast.Node, into *bool) error {
	b, ok := n.(*ast.BoolNode)
	if !ok || b.GetToken().Value != "true" && b.GetToken().Value != "false" {
		return need(n, "true or false", "it is one of the two")
	}
	*into = b.Value
	return nil
}

// choice reads one of some words.
func choice[T interface{ ~string | ~uint8 }](into *T, words ...T) func(ast.Node) error {
	return func(n ast.Node) error {
		var s string
		if err := text(n, &s); err != nil {
			return err
		}
		var all []string
		for _, w := range words {
			if fmt.Sprint(w) == s {
				*into = w
				return nil
			}
			all = append(all, fmt.Sprint(w))
		}
		return need(n, "one of "+strings.Join(all, ", "), "choose one")
	}
}

// actions reads a list of actions by name.
func actions(n ast.Node, into *chain.Actions) error {
	var set chain.Actions
	var all []chain.Action
	err := list("actions, as in [XDP_PASS]", &all, func(n ast.Node, _ []chain.Action) (chain.Action, error) {
		var name string
		if err := text(n, &name); err != nil {
			return 0, err
		}
		a, err := chain.ParseAction(name)
		switch {
		case err != nil:
			return 0, at(n, err.Error(), "name one of these")
		case set.Has(a):
			return 0, at(n, fmt.Sprintf("%s is there twice", a), "remove one")
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
		return need(n, "variables", hint)
	}
	set := map[string]string{}
	for _, v := range m.Values {
		key, ok := v.Key.(*ast.StringNode)
		if !ok {
			return need(v.Key, "the name of a variable", hint)
		}
		name := key.Value
		if name == "" || strings.ContainsAny(name, "= ") {
			return at(key, fmt.Sprintf("%q can't be the name of a variable", name), hint)
		}
		if _, ok := set[name]; ok {
			return at(key, fmt.Sprintf("%q is set twice", name), "remove one")
		}
		switch value := v.Value.(type) {
		case *ast.StringNode:
			set[name] = value.Value
		case *ast.LiteralNode:
			set[name] = value.Value.Value
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
			set[name] = v.Value.GetToken().Value
		default:
			return need(v.Value, "a value", hint)
		}
	}
	if len(set) > 0 {
		*into = set
	}
	return nil
}
