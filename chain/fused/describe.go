package fused

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"

	"github.com/holdfast-bpf/holdfast/chain"
)

// Entry is what a chain's program tells of a member.
type Entry struct {
	Name      string
	Priority  uint32
	ProceedOn chain.Actions
}

// The description of a chain is the type that its main function returns: an
// enumeration, of which each member has some constants, in order:
//
//	enum holdfast_chain_1 {
//		priority_0 = 10,
//		proceed_on_0 = 4,
//		name_0_xdp_2dfilter = 0,
//		priority_1 = 50,
//		…
//
// The kernel keeps it, and any that has BTF does: declaration tags, which would
// be made for this, came with Linux 5.16. The 1 is the version of the format.
const descriptionName = "holdfast_chain_1"

// A name of BTF is at most 127 bytes long on older kernels. Longer ones of
// members are told in several constants, with the values 0, 1, …
const longestPart = 100

func describe(entries []Entry) *btf.Enum {
	e := &btf.Enum{Name: descriptionName, Size: 4}
	add := func(value uint32, format string, args ...any) {
		e.Values = append(e.Values, btf.EnumValue{Name: fmt.Sprintf(format, args...), Value: uint64(value)})
	}
	for i, m := range entries {
		add(m.Priority, "priority_%d", i)
		add(uint32(actions(m.ProceedOn)), "proceed_on_%d", i)
		name := escape(m.Name)
		for n := uint32(0); n == 0 || name != ""; n++ {
			part := name[:min(len(name), longestPart)]
			name = name[len(part):]
			add(n, "name_%d_%s", i, part)
		}
	}
	return e
}

// errDescription says that a description is not one that this version writes.
var errDescription = errors.New("the description of the chain contradicts itself")

// parseDescription reads what describe wrote, and nothing else.
func parseDescription(t btf.Type) ([]Entry, error) {
	e, ok := t.(*btf.Enum)
	if !ok || e.Name != descriptionName {
		return nil, ErrNotFused
	}
	values := e.Values
	// take takes the first constant if its name begins so, and returns the
	// rest of the name.
	take := func(format string, i int) (rest string, value uint32, ok bool) {
		if len(values) == 0 {
			return "", 0, false
		}
		if rest, ok = strings.CutPrefix(values[0].Name, fmt.Sprintf(format, i)); ok {
			value = uint32(values[0].Value)
			values = values[1:]
		}
		return rest, value, ok
	}
	var entries []Entry
	for i := 0; len(values) > 0; i++ {
		_, priority, ok := take("priority_%d", i)
		if !ok {
			return nil, fmt.Errorf("%w: %q is not the priority of member %d", errDescription, values[0].Name, i)
		}
		_, proceedOn, ok := take("proceed_on_%d", i)
		if !ok {
			return nil, fmt.Errorf("%w: it does not tell the actions of member %d", errDescription, i)
		}
		name := ""
		for {
			part, _, ok := take("name_%d_", i)
			if !ok {
				break
			}
			name += part
		}
		plain, err := unescape(name)
		if err != nil {
			return nil, fmt.Errorf("%w: the name of member %d: %w", errDescription, i, err)
		}
		entries = append(entries, Entry{Name: plain, Priority: priority, ProceedOn: chain.Actions(proceedOn)})
	}
	if len(entries) == 0 || !slices.Equal(describe(entries).Values, e.Values) {
		return nil, errDescription
	}
	return entries, nil
}

// escape writes a member's name, which can be any text, with letters, digits and
// underscores: an underscore is doubled, and all else is one and two hex digits.
func escape(name string) string {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
			b.WriteByte(c)
		case c == '_':
			b.WriteString("__")
		default:
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	return b.String()
}

// unescape reads what escape wrote.
func unescape(s string) (string, error) {
	var b strings.Builder
	for s != "" {
		before, after, escaped := strings.Cut(s, "_")
		b.WriteString(before)
		switch {
		case !escaped:
		case strings.HasPrefix(after, "_"):
			b.WriteByte('_')
			after = after[1:]
		case len(after) < 2:
			return "", errors.New("it ends within a byte")
		default:
			c, err := hex.DecodeString(after[:2])
			if err != nil {
				return "", err
			}
			b.Write(c)
			after = after[2:]
		}
		s = after
	}
	return b.String(), nil
}
