package varlink

import (
	"strings"
	"testing"
)

func TestADescriptionIsParsed(t *testing.T) {
	d, err := Parse(`
# About it.
interface com.example-one.x2
type A (b: ?[]string, c: [string]A, d: ?(one, two), e: (x: float), f: object)
type E (red, green) # colours
method M(a: ?A, n: int) -> ()
error Bad (why: string)`)
	if err != nil {
		t.Fatal(err)
	}
	a := d.Type("A")
	if a == nil || len(a.Fields) != 5 || a.Fields[0].Type.Kind != Array || !a.Fields[0].Type.Nullable || a.Fields[2].Type.Kind != Enum || a.Fields[3].Type.Kind != Struct {
		t.Errorf("A is %+v", a)
	}
	if e := d.Type("E"); e == nil || e.Kind != Enum || len(e.Values) != 2 {
		t.Errorf("E is %+v", e)
	}
	for in, ok := range map[string]bool{
		`{"n":1}`:                    true,
		`{"n":1,"a":null}`:           true,
		`{}`:                         false,
		`{"n":1.5}`:                  false,
		`{"n":99999999999999999999}`: false,
		`{"n":1,"a":{}}`:             false,
		`{"n":1,"z":2}`:              false,
		`[]`:                         false,
		`{"n":1,"a":{"c":{},"e":{"x":1},"f":null}}`:                                true,
		`{"n":1,"a":{"c":{"k":{"c":{},"e":{"x":1},"f":7}},"e":{"x":1},"f":[1]}}`:   true,
		`{"n":1,"a":{"c":{"k":{"c":{},"e":{"x":"1"},"f":7}},"e":{"x":1},"f":[1]}}`: false,
		`{"n":1,"a":{"b":["x",3],"c":{},"e":{"x":1},"f":null}}`:                    false,
		`{"n":1,"a":{"b":["x"],"c":{},"d":"two","e":{"x":1},"f":null}}`:            true,
		`{"n":1,"a":{"b":["x"],"c":{},"d":"three","e":{"x":1},"f":null}}`:          false,
	} {
		if err := d.CheckInput("M", []byte(in)); (err == nil) != ok {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestADescriptionThatIsWrongIsRefusedWithItsLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       `line 1: there should be "interface"`,
		"interface x":                            "no name of an interface",
		"interface -a.b":                         "no name of an interface",
		"interface a.b\ntype a (x: int)":         `line 2: "a" is no name`,
		"interface a.b\n\ntype A (x: B)":         "there is no type B",
		"interface a.b\ntype A (x)\ntype A ()":   "line 3: A is there twice",
		"interface a.b\ntype A (x, y: int)":      "y has no type, or should have none",
		"interface a.b\ntype A (x: int, x: int)": "x is there twice",
		"interface a.b\ntype A (x_: int)":        "no name of a field",
		"interface a.b\ntype A (x: ??int)":       "nullable twice",
		"interface a.b\ntype A (x: number)":      "is no type",
		"interface a.b\nmethod A() -> ":          `there should be "("`,
		"interface a.b\nmethod A()":              `there should be "->"`,
		"interface a.b\nthing A()":               "none of type, method and error",
		"interface a.b\ntype A (x: " + strings.Repeat("[]", 100) + "int)": "nested more than",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(example)
	f.Add(service)
	f.Fuzz(func(t *testing.T, text string) {
		d, err := Parse(text)
		if err != nil {
			return
		}
		for _, m := range d.Methods {
			_ = d.CheckInput(m.Name, []byte(`{"a":[{"b":null}]}`))
			_ = d.CheckOutput(m.Name, []byte(`[]`))
		}
	})
}
