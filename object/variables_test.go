package object

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAssignmentsAreTakenApart(t *testing.T) {
	for text, want := range map[string]assignment{
		"a=1":            {name: "a", value: "1"},
		"_a9=":           {name: "_a9"},
		"a=b=c":          {name: "a", value: "b=c"},
		"a= x ":          {name: "a", value: " x "},
		"a.b=1":          {name: "a", path: []step{{member: "b"}}, value: "1"},
		"a[3]=1":         {name: "a", path: []step{{index: 3}}, value: "1"},
		"a[0].b[1].c=d":  {name: "a", path: []step{{}, {member: "b"}, {index: 1}, {member: "c"}}, value: "d"},
		"a[4294967295]=": {name: "a", path: []step{{index: 1<<32 - 1}}},
	} {
		got, err := parseAssignment(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(assignment{}, step{})); diff != "" {
			t.Errorf("%q:\n%s", text, diff)
		}
	}
	for text, words := range map[string]string{
		"":          "there is no value",
		"a":         "there is no value",
		"=1":        "does not start with a variable's name",
		"9a=1":      "does not start with a variable's name",
		"a b=1":     "neither .member nor [index]",
		"ä=1":       "does not start with a variable's name",
		"a.=1":      "a member's name is missing",
		"a..b=1":    "a member's name is missing",
		"a[=1":      "a closing bracket is missing",
		"a[]=1":     "not the number of an array element",
		"a[-1]=1":   "not the number of an array element",
		"a[1=]":     "a closing bracket is missing",
		"a[1]b=1":   "neither .member nor [index]",
		"a[0x1]=1":  "not the number of an array element",
		"a[1e99]=1": "not the number of an array element",
	} {
		if _, err := parseAssignment(text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: error %v does not say %q", text, err, words)
		}
	}
}

func FuzzParseAssignment(f *testing.F) {
	for _, s := range []string{"a=1", "a.b[3].c=x", "a[0]=", "=", "a[", "a.b", "a[99999999999]=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAssignment(s)
		if err != nil {
			return
		}
		// What was understood is understood the same when written again.
		again, err := parseAssignment(a.target() + "=" + a.value)
		if err != nil {
			t.Fatalf("%q was read as %q, which is refused: %v", s, a.target(), err)
		}
		if diff := cmp.Diff(a, again, cmp.AllowUnexported(assignment{}, step{})); diff != "" {
			t.Errorf("%q:\n%s", s, diff)
		}
	})
}

// set makes the assignments and returns the bytes of the variable.
func set(t *testing.T, variable string, assignments ...string) ([]byte, error) {
	t.Helper()
	o := read(t, "variables")
	for _, a := range assignments {
		if err := o.Set(a); err != nil {
			return o.spec.Variables[variable].Value, err
		}
	}
	return o.spec.Variables[variable].Value, nil
}

func TestVariablesOfEveryTypeAreSet(t *testing.T) {
	for _, c := range []struct {
		variable, assignment string
		want                 []byte
	}{
		{"u8", "u8=255", []byte{255}},
		{"u16", "u16=0xBEEF", []byte{0xef, 0xbe}},
		{"u32", "u32=0o17", []byte{15, 0, 0, 0}},
		{"u32", "u32=0b101", []byte{5, 0, 0, 0}},
		{"u64", "u64=18446744073709551615", bytes.Repeat([]byte{255}, 8)},
		{"s8", "s8=-128", []byte{0x80}},
		{"s16", "s16=-1", []byte{255, 255}},
		{"s32", "s32=-0x10", []byte{0xf0, 255, 255, 255}},
		{"s64", "s64=-9223372036854775808", []byte{0, 0, 0, 0, 0, 0, 0, 0x80}},
		{"s64", "s64=1", []byte{1, 0, 0, 0, 0, 0, 0, 0}},
		{"flag", "flag=true", []byte{1}},
		{"flag", "flag=0", []byte{0}},
		{"name", "name=front door", []byte("front door\x00\x00\x00\x00\x00\x00")},
		{"name", "name=", make([]byte, 16)},
		{"name", "name=123456789012345", []byte("123456789012345\x00")},
		{"verdict", "verdict=VERDICT_DROP", []byte{1, 0, 0, 0}},
		{"verdict", "verdict=2", []byte{2, 0, 0, 0}},
		{"ports", "ports[3]=443", []byte{1, 0, 2, 0, 3, 0, 0xbb, 1}},
		{"limit", "limit.rate=7", []byte{7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		{"limit", "limit.burst.high=-2", []byte{10, 0, 0, 0, 0, 0, 254, 255, 0, 0, 0, 0, 0, 0, 0, 0}},
		{"limit", "limit.mac=02:00:0a:0b:0c:0d", []byte{10, 0, 0, 0, 0, 0, 0, 0, 2, 0, 10, 11, 12, 13, 0, 0}},
		{"limit", "limit.mac=0x02000a0b0c0d", []byte{10, 0, 0, 0, 0, 0, 0, 0, 2, 0, 10, 11, 12, 13, 0, 0}},
		{"limit", "limit.mac[5]=9", []byte{10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0}},
		{"writable", "writable=6", []byte{6, 0, 0, 0}},
		{"zeroed", "zeroed=7", []byte{7, 0, 0, 0}},
	} {
		got, err := set(t, c.variable, c.assignment)
		if err != nil {
			t.Errorf("%s: %v", c.assignment, err)
		} else if !bytes.Equal(got, c.want) {
			t.Errorf("%s: % x, want % x", c.assignment, got, c.want)
		}
	}
}

func TestAValueThatDoesNotFitChangesNothing(t *testing.T) {
	for _, c := range []struct{ variable, assignment, words string }{
		{"u8", "u8=256", "the range is 0 to 255"},
		{"u16", "u16=65536", "the range is 0 to 65535"},
		{"u16", "u16=-1", "the range is 0 to 65535"},
		{"u64", "u64=18446744073709551616", "the range is 0 to 18446744073709551615"},
		{"s8", "s8=128", "the range is -128 to 127"},
		{"s64", "s64=9223372036854775808", "the range is -9223372036854775808 to 9223372036854775807"},
		{"u32", "u32=", "is not a number"},
		{"u32", "u32=many", "is not a number"},
		{"u32", "u32=1.5", "is not a number"},
		{"flag", "flag=2", "neither true nor false"},
		{"name", "name=1234567890123456", "room for 15"},
		{"name", "name=a\x00b", "NUL"},
		{"verdict", "verdict=VERDICT_OTHER", "VERDICT_PASS, VERDICT_DROP"},
		{"ports", "ports=1", "set its elements"},
		{"ports", "ports[4]=1", "has no element 4, the last is 3"},
		{"ports", "ports.a=1", "is an array"},
		{"limit", "limit=1", "set its members: rate, burst, mac"},
		{"limit", "limit.burst=1", "set its members: low, high"},
		{"limit", "limit.none=1", "there are rate, burst, mac"},
		{"limit", "limit[0]=1", "struct limit is not an array"},
		{"limit", "limit.mac=0200", "is 2 bytes long and has to be 6"},
		{"limit", "limit.mac=2:0:a:b:c:d", "two hex digits"},
		{"limit", "limit.mac=zz", "not a row of bytes"},
		{"u32", "u32.x=1", "__u32 has no parts"},
	} {
		before, _ := set(t, c.variable)
		got, err := set(t, c.variable, c.assignment)
		wantError(t, err, ErrVariable, "variables.o", c.words)
		if !bytes.Equal(before, got) {
			t.Errorf("%s changed the variable to % x", c.assignment, got)
		}
	}
}

func TestAnUnknownVariableIsAnsweredWithTheKnownOnes(t *testing.T) {
	wantError(t, read(t, "filter").Set("port=1"), ErrVariable, `there is no "port"`, "__u16 drop_port, __u32 version")
	wantError(t, read(t, "pass").Set("port=1"), ErrVariable, "has no global variables")
}

func TestWithoutTypesNothingIsSet(t *testing.T) {
	o := read(t, "filter")
	o.spec.Variables["version"].Type = nil
	wantError(t, o.Set("version=1"), ErrBTF, "does not tell the type of version", "clang -g")
}

func TestVariablesAreListedWithTheirTypes(t *testing.T) {
	want := []Variable{
		{Name: "drop_port", Type: "__u16", Size: 2, Constant: true},
		{Name: "version", Type: "__u32", Size: 4, Constant: true},
	}
	if diff := cmp.Diff(want, read(t, "filter").Variables()); diff != "" {
		t.Error(diff)
	}
	types := make(map[string]string)
	for _, v := range read(t, "variables").Variables() {
		types[v.Name] = v.Type
	}
	for name, want := range map[string]string{
		"name": "char[16]", "ports": "__u16[4]", "limit": "struct limit",
		"verdict": "enum verdict", "flag": "_Bool",
	} {
		if types[name] != want {
			t.Errorf("the type of %s is %q, want %q", name, types[name], want)
		}
	}
}
