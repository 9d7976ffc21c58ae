package policy

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/yamlfile"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Dir is where the policy is: policy.yaml, and then the files in policy.d whose names
// end in .yaml, by name.
const Dir = "/etc/holdfast"

// Load reads the policy of a directory, Default where there is no file of it. A file
// that can't be understood is a [*yamlfile.Error] that says where.
func Load(dir string) (*Policy, error) {
	files, err := files(dir)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return Default(), nil
	}
	p := &Policy{}
	for _, name := range files {
		one, err := ReadFile(name)
		if err != nil {
			return nil, err
		}
		p.Rules = append(p.Rules, one.Rules...)
	}
	return p, nil
}

// files are those of a policy, in their order. What is there and can't be looked at is
// an error: without one of its files a policy could allow more.
func files(dir string) ([]string, error) {
	var all []string
	name := filepath.Join(dir, "policy.yaml")
	switch _, err := os.Lstat(name); { // not Stat: a link to nowhere is no missing file
	case err == nil:
		all = append(all, name)
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	dir = filepath.Join(dir, "policy.d")
	more, err := os.ReadDir(dir) // by name
	if _, missing := os.Lstat(dir); err != nil && !errors.Is(missing, os.ErrNotExist) {
		return nil, err
	}
	for _, f := range more {
		if strings.HasSuffix(f.Name(), ".yaml") {
			all = append(all, filepath.Join(dir, f.Name()))
		}
	}
	return all, nil
}

// ReadFile reads one file. The errors are those of [Decode], and those of opening it.
func ReadFile(name string) (*Policy, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return Decode(name, f)
}

// Decode reads a file. The name stands for it in errors, which are [*yamlfile.Error]
// where the reader has none.
func Decode(name string, r io.Reader) (*Policy, error) {
	var p Policy
	err := yamlfile.Read(name, r, func(root ast.Node) error { return p.decode(name, root) })
	if err != nil {
		return nil, err
	}
	return &p, nil
}

func (p *Policy) decode(name string, root ast.Node) error {
	version := uint32(0)
	return yamlfile.Mapping(root, "the file", yamlfile.Fields{
		"version": {How: yamlfile.Required, Read: func(n ast.Node) error { return yamlfile.Number(n, &version) }},
		"rules": {How: yamlfile.Required, Read: yamlfile.List("rules", &p.Rules, func(n ast.Node, before []Rule) (Rule, error) {
			return decodeRule(name, n, before)
		})},
	}, func() error {
		if version != 1 {
			return yamlfile.At(root, fmt.Sprintf("the file is of version %d", version), "this Holdfast reads version 1")
		}
		return nil
	})
}

func decodeRule(name string, n ast.Node, before []Rule) (Rule, error) {
	at := yamlfile.At(n, "", "")
	r := Rule{Where: fmt.Sprintf("%s:%d", name, at.Line)}
	deny, allows := false, false
	err := yamlfile.Mapping(n, "a rule", yamlfile.Fields{
		"name":  required(yamlfile.Checked(&r.Name, yamlfile.NotEmpty("the name"))),
		"match": optional(r.Match.decode),
		"allow": optional(func(n ast.Node) error { allows, r.Allow = true, &Allow{}; return r.Allow.decode(n) }),
		"deny": optional(func(n ast.Node) error {
			if err := yamlfile.Boolean(n, &deny); err != nil || deny {
				return err
			}
			return yamlfile.At(n, "deny is true where it is there", "a rule has one of allow and deny: true")
		}),
	}, func() error {
		switch {
		case deny == allows:
			return yamlfile.At(n, "a rule has one of allow and deny", "give allow, or deny: true")
		case slices.ContainsFunc(before, func(other Rule) bool { return other.Name == r.Name }):
			return yamlfile.At(n, fmt.Sprintf("there is a rule %q already", r.Name), "choose another name")
		}
		return nil
	})
	return r, err
}

// field is what yamlfile.Fields has for each key.
type field = struct {
	How  yamlfile.Presence
	Read func(ast.Node) error
}

func required(read func(ast.Node) error) field { return field{yamlfile.Required, read} }
func optional(read func(ast.Node) error) field { return field{yamlfile.Optional, read} }

func (m *Match) decode(n ast.Node) error {
	return yamlfile.Mapping(n, "match", yamlfile.Fields{
		"uid":       optional(ranges("users", &m.UID)),
		"gid":       optional(ranges("groups", &m.GID)),
		"unit":      optional(patterns("units", &m.Unit, aName)),
		"cgroup":    optional(patterns("cgroups", &m.Cgroup, aPath)),
		"exe":       optional(patterns("programs", &m.Exe, aPath)),
		"interface": optional(patterns("interfaces", &m.Interface, aName)),
		"contained": optional(func(n ast.Node) error { m.Contained = new(bool); return yamlfile.Boolean(n, m.Contained) }),
		"netns":     optional(yamlfile.Choice(&m.Netns, AnyNetns, HostNetns, OwnNetns)),
	}, func() error { return nil })
}

func (a *Allow) decode(n ast.Node) error {
	return yamlfile.Mapping(n, "allow", yamlfile.Fields{
		"verbs":     required(choices("verbs", &a.Verbs, Verbs...)),
		"modes":     optional(choices("modes", &a.Modes, xdp.Native, xdp.Generic, xdp.Offload)),
		"lifetimes": optional(choices("lifetimes", &a.Lifetimes, owned.Held, owned.Permanent)),
		"priority": optional(func(n ast.Node) error {
			r, err := decodeRange(n)
			a.Priority = &r
			return err
		}),
		"exclusive": optional(func(n ast.Node) error { return yamlfile.Boolean(n, &a.Exclusive) }),
		"others":    optional(func(n ast.Node) error { return yamlfile.Boolean(n, &a.Others) }),
		"quota":     optional(a.Quota.decode),
		"objects":   optional(digests(&a.Objects)),
	}, func() error { return nil })
}

func (q *Quota) decode(n ast.Node) error {
	count := func(into **uint64) func(ast.Node) error {
		return func(n ast.Node) error {
			v, ok := decimal(n.GetToken().Value, 63)
			if _, number := n.(*ast.IntegerNode); !number || !ok {
				return yamlfile.Need(n, "a number", "it is in decimal")
			}
			*into = &v
			return nil
		}
	}
	size := func(into **uint64) func(ast.Node) error {
		return func(n ast.Node) error {
			if s, ok := n.(*ast.StringNode); ok {
				v, ok := bytesOf(s.Value)
				if !ok {
					return yamlfile.Need(n, "a number of bytes, or one as 64Mi", "Ki, Mi and Gi are the units")
				}
				*into = &v
				return nil
			}
			return count(into)(n)
		}
	}
	return yamlfile.Mapping(n, "quota", yamlfile.Fields{
		"members":      optional(count(&q.Members)),
		"map-memory":   optional(size(&q.MapMemory)),
		"instructions": optional(count(&q.Instructions)),
		"object-size":  optional(size(&q.ObjectSize)),
	}, func() error { return nil })
}

// decimal reads digits that can be read in one way only: 010 is no number.
func decimal(s string, bits int) (uint64, bool) {
	v, err := strconv.ParseUint(s, 10, bits)
	return v, err == nil && strconv.FormatUint(v, 10) == s
}

// bytesOf reads a size with its unit. Up to nine digits never overflow.
func bytesOf(s string) (uint64, bool) {
	for unit, shift := range map[string]int{"Ki": 10, "Mi": 20, "Gi": 30} {
		if digits, ok := strings.CutSuffix(s, unit); ok && len(digits) <= 9 {
			v, ok := decimal(digits, 63)
			return v << shift, ok
		}
	}
	return 0, false
}

// some is a list that has something in it: an empty one would match nothing, or allow
// nothing, and whoever wrote it may have meant the opposite.
func some[T any](name string, into *[]T, read func(ast.Node) (T, error)) func(ast.Node) error {
	return func(n ast.Node) error {
		if err := yamlfile.List(name, into, func(n ast.Node, _ []T) (T, error) { return read(n) })(n); err != nil {
			return err
		}
		if len(*into) == 0 {
			return yamlfile.At(n, "the list of "+name+" is empty", "name some, or leave it out")
		}
		return nil
	}
}

func ranges(name string, into *[]Range) func(ast.Node) error { return some(name, into, decodeRange) }

// decodeRange reads a number, or two with a hyphen between them.
func decodeRange(n ast.Node) (Range, error) {
	wrong := func() (Range, error) {
		return Range{}, yamlfile.Need(n, "a number, or two as in 1000-1999", "they are from 0 to 4294967295, in decimal")
	}
	if _, ok := n.(*ast.IntegerNode); ok {
		var v uint32
		err := yamlfile.Number(n, &v)
		return Range{v, v}, err
	}
	s, ok := n.(*ast.StringNode)
	if !ok {
		return wrong()
	}
	first, last, ok := strings.Cut(s.Value, "-")
	a, ok1 := decimal(first, 32)
	b, ok2 := decimal(last, 32)
	if !ok || !ok1 || !ok2 || a > b {
		return wrong()
	}
	return Range{uint32(a), uint32(b)}, nil
}

// The kinds of patterns, with what is wrong where one could never fit: the rule would be
// about nothing, and let pass what it was to deny.
var (
	aName = shape{regexp.MustCompile(`^[^/]+$`), "has a slash, which no name has"}
	aPath = shape{regexp.MustCompile(`^(/|(/[^/]+)+)$`), "is no path: it begins with a slash, and ends with none"}
)

type shape struct {
	fits  *regexp.Regexp
	wrong string
}

func patterns(name string, into *[]string, kind shape) func(ast.Node) error {
	return some(name, into, func(n ast.Node) (string, error) {
		var s string
		err := yamlfile.Checked(&s, func(s string) error {
			if err := yamlfile.NotEmpty("the pattern")(s); err != nil {
				return err
			}
			if !kind.fits.MatchString(s) {
				return fmt.Errorf("the pattern %q %s", s, kind.wrong)
			}
			for part := range strings.SplitSeq(s, "/") { // as Fits reads it
				if _, err := path.Match(part, ""); err != nil {
					return fmt.Errorf("the pattern %q is not one: a [ has no ], or a backslash nothing behind it", s)
				}
			}
			if inner, _ := strings.CutSuffix(s, "/**"); strings.Contains(inner, "**") {
				return fmt.Errorf("the pattern %q has ** elsewhere than behind its last slash", s)
			}
			return nil
		})(n)
		return s, err
	})
}

func choices[T interface{ ~string | ~uint8 }](name string, into *[]T, words ...T) func(ast.Node) error {
	return some(name, into, func(n ast.Node) (T, error) {
		var v T
		err := yamlfile.Choice(&v, words...)(n)
		return v, err
	})
}

var digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func digests(into *[]string) func(ast.Node) error {
	return some("objects", into, func(n ast.Node) (string, error) {
		var s string
		err := yamlfile.Checked(&s, func(s string) error {
			if !digest.MatchString(s) {
				return fmt.Errorf("%q is no digest", s)
			}
			return nil
		})(n)
		return s, err
	})
}
