package varlink

import (
	"errors"
	"fmt"
	"strings"
)

// Description is an interface, as Varlink's language describes it.
type Description struct {
	Name string
	// Text is what was parsed.
	Text    string
	Types   []Definition
	Methods []MethodDescription
	// Errors have a struct each.
	Errors []Definition
}

// Definition is a type with a name.
type Definition struct {
	Name string
	Type Type
}

// MethodDescription is a method. In and Out are structs.
type MethodDescription struct {
	Name    string
	In, Out Type
}

// Kind is what kind of type there is.
type Kind string

// The kinds of types. Any is "object": whatever JSON there is.
const (
	Bool   Kind = "bool"
	Int    Kind = "int"
	Float  Kind = "float"
	String Kind = "string"
	Any    Kind = "object"
	Struct Kind = "struct"
	Enum   Kind = "enum"
	Array  Kind = "array"
	Map    Kind = "map"
	Named  Kind = "named"
)

// Type is a type.
type Type struct {
	Kind Kind
	// Nullable tells that the value may be null, or left out.
	Nullable bool
	// Name is that of a Named type.
	Name string
	// Fields are a struct's, Values an enum's, and Element is of an array or a map.
	Fields  []Definition
	Values  []string
	Element *Type
}

// Method finds a method, nil where there is none of that name.
func (d *Description) Method(name string) *MethodDescription {
	for i := range d.Methods {
		if d.Methods[i].Name == name {
			return &d.Methods[i]
		}
	}
	return nil
}

// Type finds a type, nil where there is none of that name.
func (d *Description) Type(name string) *Type { return find(d.Types, name) }

// Error finds the parameters of an error, nil where there is none of that name.
func (d *Description) Error(name string) *Type { return find(d.Errors, name) }

func find(all []Definition, name string) *Type {
	for i := range all {
		if all[i].Name == name {
			return &all[i].Type
		}
	}
	return nil
}

// Parse reads the description of an interface. All names in it must be defined. The
// error names the line.
func Parse(text string) (*Description, error) {
	p := &parser{text: text, line: 1}
	d, err := p.description()
	if err != nil {
		return nil, fmt.Errorf("varlink: the description of an interface, line %d: %w", p.line, err)
	}
	d.Text = text
	return d, nil
}

// parser reads a description from its beginning.
type parser struct {
	text  string
	at    int
	line  int
	depth int
}

// maxNesting bounds types in types.
const maxNesting = 32

func (p *parser) description() (*Description, error) {
	if err := p.expect("interface"); err != nil {
		return nil, err
	}
	d := &Description{Name: p.word(isInterfaceName)}
	if !validInterface(d.Name) {
		return nil, fmt.Errorf("%q is no name of an interface", d.Name)
	}
	defined := map[string]bool{}
	for !p.end() {
		what := p.word(isLetter)
		name := p.word(isName)
		if !startsUpper(name) {
			return nil, fmt.Errorf("%q is no name of a type, method or error", name)
		}
		if defined[name] {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		defined[name] = true
		switch what {
		case "type":
			t, err := p.record(true)
			if err != nil {
				return nil, err
			}
			d.Types = append(d.Types, Definition{name, t})
		case "error":
			t, err := p.record(false)
			if err != nil {
				return nil, err
			}
			d.Errors = append(d.Errors, Definition{name, t})
		case "method":
			in, err := p.record(false)
			if err != nil {
				return nil, err
			}
			if err := p.expect("->"); err != nil {
				return nil, err
			}
			out, err := p.record(false)
			if err != nil {
				return nil, err
			}
			d.Methods = append(d.Methods, MethodDescription{name, in, out})
		default:
			return nil, fmt.Errorf("%q is none of type, method and error", what)
		}
	}
	return d, d.resolve()
}

// resolve checks that all types have definitions.
func (d *Description) resolve() error {
	var check func(Type) error
	check = func(t Type) error {
		if t.Kind == Named && d.Type(t.Name) == nil {
			return fmt.Errorf("there is no type %s", t.Name)
		}
		for _, f := range t.Fields {
			if err := check(f.Type); err != nil {
				return err
			}
		}
		if t.Element != nil {
			return check(*t.Element)
		}
		return nil
	}
	for _, def := range append(append([]Definition{}, d.Types...), d.Errors...) {
		if err := check(def.Type); err != nil {
			return err
		}
	}
	for _, m := range d.Methods {
		if err := check(m.In); err != nil {
			return err
		}
		if err := check(m.Out); err != nil {
			return err
		}
	}
	return nil
}

// record reads a struct, or, where it may be one, an enum.
func (p *parser) record(orEnum bool) (Type, error) {
	if p.depth++; p.depth > maxNesting {
		return Type{}, fmt.Errorf("types are nested more than %d deep", maxNesting)
	}
	defer func() { p.depth-- }()
	if err := p.expect("("); err != nil {
		return Type{}, err
	}
	t := Type{Kind: Struct}
	if p.accept(")") {
		return t, nil
	}
	seen := map[string]bool{}
	for n := 0; ; n++ {
		name := p.word(isName)
		if !validField(name) {
			return t, fmt.Errorf("%q is no name of a field", name)
		}
		if seen[name] {
			return t, fmt.Errorf("%s is there twice", name)
		}
		seen[name] = true
		typed := p.accept(":")
		if n == 0 && !typed && orEnum {
			t.Kind = Enum
		}
		if typed != (t.Kind == Struct) {
			return t, fmt.Errorf("%s has no type, or should have none", name)
		}
		if t.Kind == Enum {
			t.Values = append(t.Values, name)
		} else {
			element, err := p.typ()
			if err != nil {
				return t, err
			}
			t.Fields = append(t.Fields, Definition{name, element})
		}
		if p.accept(")") {
			return t, nil
		}
		if err := p.expect(","); err != nil {
			return t, err
		}
	}
}

func (p *parser) typ() (Type, error) {
	if p.depth++; p.depth > maxNesting {
		return Type{}, fmt.Errorf("types are nested more than %d deep", maxNesting)
	}
	defer func() { p.depth-- }()
	switch {
	case p.accept("?"):
		t, err := p.typ()
		if err == nil && t.Nullable {
			err = errors.New("a type is said to be nullable twice")
		}
		t.Nullable = true
		return t, err
	case p.accept("[]"):
		return p.container(Array)
	case p.accept("[string]"):
		return p.container(Map)
	case p.peek() == '(':
		return p.record(true)
	}
	name := p.word(isName)
	switch k := Kind(name); k {
	case Bool, Int, Float, String, Any:
		return Type{Kind: k}, nil
	}
	if !startsUpper(name) {
		return Type{}, fmt.Errorf("%q is no type", name)
	}
	return Type{Kind: Named, Name: name}, nil
}

func (p *parser) container(k Kind) (Type, error) {
	element, err := p.typ()
	return Type{Kind: k, Element: &element}, err
}

// skip goes past blanks and comments.
func (p *parser) skip() {
	for ; p.at < len(p.text); p.at++ {
		switch p.text[p.at] {
		case ' ', '\t', '\r':
		case '\n':
			p.line++
		case '#':
			for p.at+1 < len(p.text) && p.text[p.at+1] != '\n' {
				p.at++
			}
		default:
			return
		}
	}
}

func (p *parser) end() bool {
	p.skip()
	return p.at == len(p.text)
}

// peek is the next byte, 0 at the end.
func (p *parser) peek() byte {
	if p.end() {
		return 0
	}
	return p.text[p.at]
}

func (p *parser) accept(s string) bool {
	p.skip()
	if !strings.HasPrefix(p.text[p.at:], s) {
		return false
	}
	p.at += len(s)
	return true
}

func (p *parser) expect(s string) error {
	if p.accept(s) {
		return nil
	}
	rest := p.text[p.at:]
	return fmt.Errorf("there should be %q before %.20q", s, rest)
}

// word reads what consists of such bytes.
func (p *parser) word(fits func(byte) bool) string {
	p.skip()
	begin := p.at
	for p.at < len(p.text) && fits(p.text[p.at]) {
		p.at++
	}
	return p.text[begin:p.at]
}

func isLetter(c byte) bool        { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func isName(c byte) bool          { return isLetter(c) || c >= '0' && c <= '9' || c == '_' }
func isInterfaceName(c byte) bool { return isName(c) && c != '_' || c == '.' || c == '-' }

func startsUpper(s string) bool {
	return s != "" && s[0] >= 'A' && s[0] <= 'Z' && !strings.Contains(s, "_")
}

func validField(s string) bool {
	return s != "" && isLetter(s[0]) && !strings.Contains(s, "__") && s[len(s)-1] != '_'
}

// validInterface tells whether the name has at least two parts, and each of them
// begins with a letter or, but for the first, a digit.
func validInterface(s string) bool {
	parts := strings.Split(s, ".")
	for i, part := range parts {
		if part == "" || part[0] == '-' || part[len(part)-1] == '-' || i == 0 && !isLetter(part[0]) {
			return false
		}
	}
	return len(parts) > 1
}
