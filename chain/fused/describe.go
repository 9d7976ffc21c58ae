package fused

import (
	"encoding/hex"
	"errors"
	"fmt"
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

func describe(members []Member) *btf.Enum {
	e := &btf.Enum{Name: descriptionName, Size: 4}
	add := func(value uint32, format string, args ...any) {
		e.Values = append(e.Values, btf.EnumValue{Name: fmt.Sprintf(format, args...), Value: uint64(value)})
	}
	for i, m := range members {
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

// errDescription says what is wrong with a description, beside ErrNotFused.
var errDescription = errors.New("the description of the chain contradicts itself")

// parseDescription reads what describe wrote. It takes nothing else.
func parseDescription(t btf.Type) ([]Entry, error) {
	e, ok := t.(*btf.Enum)
	if !ok || e.Name != descriptionName {
		return nil, ErrNotFused
	}
	values := e.Values
	// take is the first constant, if it has that name.
	take := func(name string) (uint32, bool) {
		if len(values) == 0 || values[0].Name != name {
			return 0, false
		}
		v := values[0].Value
		values = values[1:]
		return uint32(v), true
	}
	var entries []Entry
	for i := 0; len(values) > 0; i++ {
		priority, ok := take(fmt.Sprintf("priority_%d", i))
		if !ok {
			return nil, fmt.Errorf("%w: %q is not the priority of member %d", errDescription, values[0].Name, i)
		}
		proceedOn, ok := take(fmt.Sprintf("proceed_on_%d", i))
		if !ok || actions(chain.Actions(proceedOn)) != chain.Actions(proceedOn) {
			return nil, fmt.Errorf("%w: it does not tell the actions of member %d", errDescription, i)
		}
		var name string
		parts := 0
		for ; len(values) > 0; parts++ {
			part, ok := strings.CutPrefix(values[0].Name, fmt.Sprintf("name_%d_", i))
			if !ok {
				break
			}
			if values[0].Value != uint64(parts) {
				return nil, fmt.Errorf("%w: a part of the name of member %d is missing", errDescription, i)
			}
			name += part
			values = values[1:]
		}
		plain, ok := unescape(name)
		if !ok || parts == 0 {
			return nil, fmt.Errorf("%w: it does not tell the name of member %d", errDescription, i)
		}
		entries = append(entries, Entry{Name: plain, Priority: priority, ProceedOn: chain.Actions(proceedOn)})
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: it tells of no members", errDescription)
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

// unescape reads what escape wrote, and nothing else.
func unescape(s string) (string, bool) {
	var b strings.Builder
	for rest := s; rest != ""; {
		c := rest[0]
		switch {
		case c != '_':
			b.WriteByte(c)
			rest = rest[1:]
		case strings.HasPrefix(rest, "__"):
			b.WriteByte('_')
			rest = rest[2:]
		default:
			if len(rest) < 3 {
				return "", false
			}
			code, err := hex.DecodeString(rest[1:3])
			if err != nil {
				return "", false
			}
			b.Write(code)
			rest = rest[3:]
		}
	}
	return b.String(), escape(b.String()) == s
}
