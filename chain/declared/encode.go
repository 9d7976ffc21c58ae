package declared

import (
	"bytes"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Encode writes a file that Decode reads as the same. The error is an [*Error]
// where what it declares is none that Decode would take.
func Encode(f *File) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("version: 1\nhooks:\n")
	for _, h := range f.Hooks {
		fmt.Fprintf(&b, "- interface: %s\n", quote(h.Interface))
		if h.Namespace != "" {
			fmt.Fprintf(&b, "  netns: %s\n", quote(h.Namespace))
		}
		if h.Mode != xdp.Auto {
			fmt.Fprintf(&b, "  mode: %s\n", quote(h.Mode.String()))
		}
		if h.Engine != Auto && h.Engine != "" {
			fmt.Fprintf(&b, "  engine: %s\n", quote(string(h.Engine)))
		}
		if h.Exclusive {
			b.WriteString("  exclusive: true\n")
		}
		if h.Stats != nil {
			fmt.Fprintf(&b, "  stats: %t\n", *h.Stats)
		}
		if h.Drift != "" {
			fmt.Fprintf(&b, "  drift: %s\n", h.Drift)
		}
		if len(h.Members) == 0 {
			b.WriteString("  members: []\n")
			continue
		}
		b.WriteString("  members:\n")
		for _, m := range h.Members {
			writeMember(&b, m)
		}
	}
	// Decode has all the rules there are.
	read, err := Decode("declaration", bytes.NewReader(b.Bytes()))
	if err != nil {
		return nil, &Error{Detail: "it can't be written as a file: " + err.Error(), Hint: "look at what it was made of"}
	}
	if !reflect.DeepEqual(read, normal(f)) {
		return nil, &Error{Detail: "written as a file it would be another declaration", Hint: "look at what it was made of"}
	}
	return b.Bytes(), nil
}

// normal is the file with what can be said in two ways said in Decode's.
func normal(f *File) *File {
	n := &File{Hooks: slices.Clone(f.Hooks)}
	for i := range n.Hooks {
		h := &n.Hooks[i]
		if h.Engine == "" {
			h.Engine = Auto
		}
		if len(h.Members) == 0 {
			h.Members = nil
		}
		h.Members = slices.Clone(h.Members)
		for j := range h.Members {
			if len(h.Members[j].Variables) == 0 {
				h.Members[j].Variables = nil
			}
		}
	}
	return n
}

func writeMember(b *bytes.Buffer, m Member) {
	fmt.Fprintf(b, "  - name: %s\n", quote(m.Name))
	fmt.Fprintf(b, "    object: %s\n", quote(m.Object))
	if m.Program != "" {
		fmt.Fprintf(b, "    program: %s\n", quote(m.Program))
	}
	if m.Section != "" {
		fmt.Fprintf(b, "    section: %s\n", quote(m.Section))
	}
	fmt.Fprintf(b, "    priority: %d\n", m.Priority)
	var names []string
	for _, a := range chain.AllActions() {
		if m.ProceedOn.Has(a) {
			names = append(names, a.String())
		}
	}
	fmt.Fprintf(b, "    proceed-on: [%s]\n", strings.Join(names, ", "))
	if len(m.Variables) == 0 {
		return
	}
	b.WriteString("    set:\n")
	for _, name := range slices.Sorted(maps.Keys(m.Variables)) {
		fmt.Fprintf(b, "      %s: %s\n", quote(name), quote(m.Variables[name]))
	}
}

// plain are texts that need no quotes, unless YAML has another meaning for them.
var plain = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_/.+-]*$`)

// quote writes a text so that YAML takes it for that text.
func quote(s string) string {
	switch strings.ToLower(s) {
	case "null", "true", "false", "yes", "no", "on", "off", "y", "n":
	default:
		if plain.MatchString(s) {
			return s
		}
	}
	if !utf8.ValidString(s) {
		// As bytes that are no text, which Decode refuses: an escape would make
		// them another text.
		return s
	}
	// Go's escapes are YAML's.
	return strconv.Quote(s)
}
