// Package yamlfile reads files that people write in YAML, strictly: a word that means
// nothing, a word said twice, or a value of another type is an error, with its line and
// column. Anchors, aliases and tags are not taken.
package yamlfile

import (
	"bytes"
	"cmp"
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
)

// MaxSize is the size in bytes of the biggest file that is read, which is some
// thousand members or rules.
const MaxSize = 256 << 10

// Read has a file's only document decoded. The name stands for the file in errors,
// which are [*Error] where the reader itself has none.
func Read(name string, r io.Reader, decode func(root ast.Node) error) error {
	b, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	root, err := parse(b)
	if err == nil {
		err = decode(root)
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		e.File = name
	}
	return err
}

// ErrInvalid says that a file can't be understood. It is wrapped by an [*Error].
var ErrInvalid = errors.New("invalid file")

// Error is what is wrong with a file.
type Error struct {
	// File is its name, and Line and Column say where, from 1. They are 0 where
	// it is about the whole.
	File         string
	Line, Column int
	// Detail is what is wrong, and Hint what to do about it.
	Detail, Hint string
}

// Error is one sentence that begins as compilers begin theirs.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(cmp.Or(e.File, "the file"))
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	b.WriteString(": " + e.Detail)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap returns ErrInvalid.
func (e *Error) Unwrap() error { return ErrInvalid }

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
			return nil, At(d.Body, "a second document begins", "a file is one document")
		default:
			root = d.Body
		}
	}
	if root == nil {
		return nil, &Error{Detail: "it is empty", Hint: "it begins with version: 1"}
	}
	return root, nil
}

const hintSyntax = "see the documentation of YAML"

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

// At is an error at the node.
func At(n ast.Node, detail, hint string) *Error {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 {
		n = m.Values[0].Key // its own position is that of its first colon
	}
	p := n.GetToken().Position
	return &Error{Line: p.Line, Column: p.Column, Detail: detail, Hint: hint}
}

// Need says what a node should have been.
func Need(n ast.Node, wanted, hint string) *Error {
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
		return At(n, "anchors, aliases and tags are not taken", "write out what is meant")
	case ast.ScalarNode:
		is = n.GetToken().Value
	default:
		is = "something else"
	}
	return At(n, fmt.Sprintf("this must be %s, and is %s", wanted, is), hint)
}

// Fields are the keys of a mapping, with what reads their values.
type Fields map[string]struct {
	How  Presence
	Read func(ast.Node) error
}

type Presence bool

const (
	Required Presence = true
	Optional Presence = false
)

// Mapping reads the keys of a node that is called what, and checks at the end.
func Mapping(n ast.Node, what string, known Fields, check func() error) error {
	var keys []string
	for k := range known {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	m, ok := n.(*ast.MappingNode)
	if !ok {
		return Need(n, "keys and values", what+" has "+strings.Join(keys, ", "))
	}
	seen := map[string]bool{}
	for _, v := range m.Values {
		key, ok := v.Key.(*ast.StringNode)
		if !ok {
			return Need(v.Key, "a key", "there are "+strings.Join(keys, ", "))
		}
		field, ok := known[key.Value]
		switch {
		case !ok:
			return At(key, fmt.Sprintf("%s has no %q", what, key.Value), "it has "+strings.Join(keys, ", "))
		case seen[key.Value]:
			return At(key, fmt.Sprintf("%q is there twice", key.Value), "remove one")
		}
		seen[key.Value] = true
		if err := field.Read(v.Value); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if known[k].How == Required && !seen[k] {
			return At(n, fmt.Sprintf("%s is missing its %q", what, k), "give it")
		}
	}
	return check()
}

// List reads the elements of a list, each with those before it.
func List[T any](name string, into *[]T, read func(n ast.Node, before []T) (T, error)) func(ast.Node) error {
	return func(n ast.Node) error {
		s, ok := n.(*ast.SequenceNode)
		if !ok {
			return Need(n, "a list of "+name, "each begins with a dash; [] is an empty one")
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

// Text reads a scalar that YAML takes for a text.
func Text(n ast.Node, into *string) error {
	switch n := n.(type) {
	case *ast.StringNode:
		*into = n.Value
		return nil
	case *ast.LiteralNode:
		*into = n.Value.Value
		return nil
	case *ast.NullNode:
		return Need(n, "a text", "give one, or leave the key out")
	}
	return Need(n, "a text", "put it into quotes")
}

// Checked reads a text that the check accepts.
func Checked(into *string, check func(string) error) func(ast.Node) error {
	return func(n ast.Node) error {
		if err := Text(n, into); err != nil {
			return err
		}
		if err := check(*into); err != nil {
			return At(n, err.Error(), "give another one")
		}
		return nil
	}
}

// NotEmpty refuses the empty text, and characters that no path or name has.
func NotEmpty(what string) func(string) error {
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

// Number reads a number as it is written in decimal, and nothing that could be
// read in two ways.
func Number(n ast.Node, into *uint32) error {
	const wanted, hint = "a number", "it is from 0 to 4294967295, in decimal"
	if _, ok := n.(*ast.IntegerNode); !ok {
		return Need(n, wanted, hint)
	}
	v, err := strconv.ParseUint(n.GetToken().Value, 10, 32)
	if err != nil || strconv.FormatUint(v, 10) != n.GetToken().Value {
		return Need(n, wanted, hint)
	}
	*into = uint32(v)
	return nil
}

func Boolean(n ast.Node, into *bool) error {
	b, ok := n.(*ast.BoolNode)
	if !ok || b.GetToken().Value != "true" && b.GetToken().Value != "false" {
		return Need(n, "true or false", "it is one of the two")
	}
	*into = b.Value
	return nil
}

// Choice reads one of some words.
func Choice[T interface{ ~string | ~uint8 }](into *T, words ...T) func(ast.Node) error {
	return func(n ast.Node) error {
		var s string
		if err := Text(n, &s); err != nil {
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
		return Need(n, "one of "+strings.Join(all, ", "), "choose one")
	}
}
