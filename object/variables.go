package object

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Variable describes a global variable of an object.
type Variable struct {
	Name     string
	Type     string // as in C, such as "__u16" or "char[16]"; empty without BTF
	Size     int    // in bytes
	Constant bool   // read-only once loaded
}

// Variables lists the object's global variables by name. Static ones are not
// among them: only names that the whole object shares can be set.
func (o *Object) Variables() []Variable {
	var all []Variable
	for _, name := range slices.Sorted(maps.Keys(o.spec.Variables)) {
		v := o.spec.Variables[name]
		desc := Variable{Name: name, Size: len(v.Value), Constant: v.Constant()}
		if v.Type != nil {
			desc.Type = typeName(v.Type.Type)
		}
		all = append(all, desc)
	}
	return all
}

// Set gives a global variable the value that it will have when the object is
// loaded. The assignment is written as
//
//	port=53           any integer type, also 0x35, 0o65 and 0b110101
//	verbose=true      bool
//	name=front        char array; the text and its closing NUL must fit
//	mac=02:00:0a:01   byte array: all its bytes in hex, with or without colons
//	mode=MODE_STRICT  enum, by name or number
//	limits.rate=100   a member of a struct or union
//	ports[3]=443      an element of an array
//
// The type comes from the object's BTF, and a value that does not fit is
// refused. A failed Set changes nothing and is an [ErrVariable], or an [ErrBTF]
// if the object does not tell its types.
func (o *Object) Set(assignment string) error {
	fail := func(err error) error {
		e := &Error{Op: "set " + assignment + " in", Object: o.name, Err: err}
		if !errors.Is(err, ErrBTF) {
			e.Err = fmt.Errorf("%w: %w", ErrVariable, err)
		} else {
			e.Hint = hintCompileBTF
		}
		return e
	}
	a, err := parseAssignment(assignment)
	if err != nil {
		return fail(err)
	}
	v := o.spec.Variables[a.name]
	if v == nil {
		return fail(fmt.Errorf("there is no %q, %s", a.name, o.listVariables()))
	}
	if v.Type == nil {
		return fail(fmt.Errorf("%w: the object does not tell the type of %s", ErrBTF, a.name))
	}
	offset, t, err := resolve(v.Type.Type, a.path)
	if err != nil {
		return fail(err)
	}
	encoded, err := encode(t, a.value, o.spec.ByteOrder)
	if err != nil {
		return fail(err)
	}
	if offset > uint64(len(v.Value)) || uint64(len(encoded)) > uint64(len(v.Value))-offset {
		return fail(fmt.Errorf("%w: it puts %s beyond the end of the variable", ErrBTF, a.target()))
	}
	copy(v.Value[offset:], encoded)
	o.assignments = append(o.assignments, assignment)
	return nil
}

// Assignments are those that Set has made, in their order.
func (o *Object) Assignments() []string { return slices.Clone(o.assignments) }

func (o *Object) listVariables() string {
	var s []string
	for _, v := range o.Variables() {
		s = append(s, strings.TrimSpace(v.Type+" "+v.Name))
	}
	if len(s) == 0 {
		return "the object has no global variables"
	}
	return "there are " + strings.Join(s, ", ")
}

// assignment is `name.member[3]=value`, taken apart.
type assignment struct {
	name  string
	path  []step
	value string
}

// step leads from a variable to a part of it: to a member if it has a name, or
// else to an element.
type step struct {
	member string
	index  uint32
}

func (s step) String() string {
	if s.member != "" {
		return "." + s.member
	}
	return fmt.Sprintf("[%d]", s.index)
}

func (a assignment) target() string {
	s := a.name
	for _, p := range a.path {
		s += p.String()
	}
	return s
}

func parseAssignment(s string) (assignment, error) {
	left, value, ok := strings.Cut(s, "=")
	if !ok {
		return assignment{}, errors.New("there is no value, write variable=value")
	}
	a := assignment{value: value}
	var rest string
	if a.name, rest = cutName(left); a.name == "" {
		return assignment{}, fmt.Errorf("%q does not start with a variable's name", left)
	}
	for rest != "" {
		switch rest[0] {
		case '.':
			var member string
			if member, rest = cutName(rest[1:]); member == "" {
				return assignment{}, fmt.Errorf("a member's name is missing after a dot in %q", left)
			}
			a.path = append(a.path, step{member: member})
		case '[':
			digits, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				return assignment{}, fmt.Errorf("a closing bracket is missing in %q", left)
			}
			index, err := strconv.ParseUint(digits, 10, 32)
			if err != nil {
				return assignment{}, fmt.Errorf("%q in %q is not the number of an array element", digits, left)
			}
			a.path = append(a.path, step{index: uint32(index)})
			rest = after
		default:
			return assignment{}, fmt.Errorf("%q in %q is neither .member nor [index]", rest, left)
		}
	}
	return a, nil
}

// cutName splits the C identifier from the front of s.
func cutName(s string) (name, rest string) {
	for i, r := range s {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return s[:i], s[i:]
		}
	}
	return s, ""
}

// resolve follows the path from a variable of type t to the part it means.
func resolve(t btf.Type, path []step) (offset uint64, _ btf.Type, err error) {
	for _, s := range path {
		switch u := btf.UnderlyingType(t).(type) {
		case *btf.Array:
			if s.member != "" {
				return 0, nil, fmt.Errorf("%s is an array and has no member %q", typeName(t), s.member)
			}
			if s.index >= u.Nelems {
				return 0, nil, fmt.Errorf("%s has no element %d, the last is %d", typeName(t), s.index, int64(u.Nelems)-1)
			}
			size, err := btf.Sizeof(u.Type)
			if err != nil {
				return 0, nil, fmt.Errorf("%w: %w", ErrBTF, err)
			}
			offset += uint64(size) * uint64(s.index)
			t = u.Type
		case *btf.Struct, *btf.Union:
			if s.member == "" {
				return 0, nil, fmt.Errorf("%s is not an array", typeName(t))
			}
			bytes, m, ok := findMember(u, s.member, 0)
			if !ok {
				return 0, nil, fmt.Errorf("%s has no member %q, there are %s", typeName(t), s.member, strings.Join(memberNames(u, 0), ", "))
			}
			if m.BitfieldSize != 0 || m.Offset%8 != 0 {
				return 0, nil, fmt.Errorf("member %q is a bit field, which cannot be set", s.member)
			}
			offset += bytes
			t = m.Type
		default:
			return 0, nil, fmt.Errorf("%s has no parts, so %q is nothing in it", typeName(t), s)
		}
	}
	return offset, t, nil
}

// maxNesting bounds how deep unnamed members may lie: BTF from a damaged file
// can contain itself.
const maxNesting = 16

func members(t btf.Type) []btf.Member {
	switch u := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		return u.Members
	case *btf.Union:
		return u.Members
	}
	return nil
}

// findMember looks a member up by name, in unnamed members too, and returns
// its offset in bytes.
func findMember(t btf.Type, name string, depth int) (uint64, btf.Member, bool) {
	if depth > maxNesting {
		return 0, btf.Member{}, false
	}
	for _, m := range members(t) {
		if m.Name == name {
			return uint64(m.Offset.Bytes()), m, true
		}
		if m.Name == "" {
			if off, inner, ok := findMember(m.Type, name, depth+1); ok {
				return uint64(m.Offset.Bytes()) + off, inner, true
			}
		}
	}
	return 0, btf.Member{}, false
}

func memberNames(t btf.Type, depth int) []string {
	if depth > maxNesting {
		return nil
	}
	var names []string
	for _, m := range members(t) {
		if m.Name == "" {
			names = append(names, memberNames(m.Type, depth+1)...)
			continue
		}
		names = append(names, m.Name)
	}
	return names
}

// encode writes text as a value of type t.
func encode(t btf.Type, text string, order binary.ByteOrder) ([]byte, error) {
	switch u := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		if u.Encoding == btf.Bool {
			return encodeBool(text, u.Size, order)
		}
		return encodeInt(text, u.Size, u.Encoding == btf.Signed, order)
	case *btf.Enum:
		for _, v := range u.Values {
			if v.Name == text {
				return putInt(v.Value, u.Size, order)
			}
		}
		b, err := encodeInt(text, u.Size, u.Signed, order)
		if err != nil {
			return nil, fmt.Errorf("%q is no value of %s, there are %s", text, typeName(t), enumNames(u))
		}
		return b, nil
	case *btf.Array:
		elem, ok := btf.UnderlyingType(u.Type).(*btf.Int)
		switch {
		case !ok || elem.Size != 1:
			return nil, fmt.Errorf("%s cannot be set as a whole, set its elements as in ports[0]=80", typeName(t))
		case elem.Name == "char":
			return encodeString(text, u.Nelems)
		default:
			return encodeBytes(text, u.Nelems)
		}
	case *btf.Struct, *btf.Union:
		return nil, fmt.Errorf("%s cannot be set as a whole, set its members: %s", typeName(t), strings.Join(memberNames(u, 0), ", "))
	default:
		return nil, fmt.Errorf("a variable of type %s cannot be set", typeName(t))
	}
}

func encodeBool(text string, size uint32, order binary.ByteOrder) ([]byte, error) {
	switch text {
	case "true", "1":
		return putInt(1, size, order)
	case "false", "0":
		return putInt(0, size, order)
	}
	return nil, fmt.Errorf("%q is neither true nor false", text)
}

func encodeInt(text string, size uint32, signed bool, order binary.ByteOrder) ([]byte, error) {
	bits := int(size) * 8
	var value uint64
	var err error
	if size > 8 {
		return nil, fmt.Errorf("an integer of %d bits cannot be set", bits)
	}
	if signed {
		var v int64
		v, err = strconv.ParseInt(text, 0, bits)
		value = uint64(v)
	} else {
		value, err = strconv.ParseUint(text, 0, bits)
		// A sign makes ParseUint call it no number at all.
		if _, serr := strconv.ParseInt(text, 0, 64); err != nil && serr == nil {
			err = strconv.ErrRange
		}
	}
	switch {
	case errors.Is(err, strconv.ErrRange) && signed:
		return nil, fmt.Errorf("%s does not fit, the range is %d to %d", text, int64(math.MinInt64)>>(64-bits), int64(math.MaxInt64)>>(64-bits))
	case errors.Is(err, strconv.ErrRange):
		return nil, fmt.Errorf("%s does not fit, the range is 0 to %d", text, uint64(math.MaxUint64)>>(64-bits))
	case err != nil:
		return nil, fmt.Errorf("%q is not a number", text)
	}
	return putInt(value, size, order)
}

func putInt(v uint64, size uint32, order binary.ByteOrder) ([]byte, error) {
	b := make([]byte, 8)
	switch size {
	case 1:
		b[0] = byte(v)
	case 2:
		order.PutUint16(b, uint16(v))
	case 4:
		order.PutUint32(b, uint32(v))
	case 8:
		order.PutUint64(b, v)
	default:
		return nil, fmt.Errorf("an integer of %d bytes cannot be set", size)
	}
	return b[:size], nil
}

func encodeString(text string, size uint32) ([]byte, error) {
	if strings.ContainsRune(text, 0) {
		return nil, fmt.Errorf("%q contains a NUL", text)
	}
	if uint64(len(text)) >= uint64(size) {
		return nil, fmt.Errorf("%q is %d bytes long and there is room for %d and the closing NUL", text, len(text), int64(size)-1)
	}
	b := make([]byte, size)
	copy(b, text)
	return b, nil
}

func encodeBytes(text string, size uint32) ([]byte, error) {
	digits := strings.TrimPrefix(text, "0x")
	if strings.Contains(digits, ":") {
		for _, part := range strings.Split(digits, ":") {
			if len(part) != 2 {
				return nil, fmt.Errorf("%q has to have two hex digits between colons", text)
			}
		}
		digits = strings.ReplaceAll(digits, ":", "")
	}
	b, err := hex.DecodeString(digits)
	if err != nil {
		return nil, fmt.Errorf("%q is not a row of bytes in hex, such as 020a or 02:0a", text)
	}
	if uint64(len(b)) != uint64(size) {
		return nil, fmt.Errorf("%q is %d bytes long and has to be %d", text, len(b), size)
	}
	return b, nil
}

func enumNames(e *btf.Enum) string {
	var names []string
	for _, v := range e.Values {
		names = append(names, v.Name)
	}
	return strings.Join(names, ", ")
}

// typeName writes a type as C does, without const and volatile.
func typeName(t btf.Type) string {
	for range maxNesting {
		switch u := t.(type) {
		case *btf.Const:
			t = u.Type
		case *btf.Volatile:
			t = u.Type
		case *btf.TypeTag:
			t = u.Type
		case *btf.Array:
			// C writes the outer dimension first.
			dims := ""
			for range maxNesting {
				dims += fmt.Sprintf("[%d]", u.Nelems)
				inner, ok := u.Type.(*btf.Array)
				if !ok {
					break
				}
				u = inner
			}
			return typeName(u.Type) + dims
		case *btf.Struct:
			return strings.TrimSpace("struct " + u.Name)
		case *btf.Union:
			return strings.TrimSpace("union " + u.Name)
		case *btf.Enum:
			return strings.TrimSpace("enum " + u.Name)
		case *btf.Pointer:
			return "pointer"
		default:
			return t.TypeName()
		}
	}
	return "a type too deep to name"
}
