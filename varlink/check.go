package varlink

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// CheckInput tells whether a JSON object is what the method takes: every value of
// the type that it should have, nothing missing, and nothing that the method does
// not know. The error is an org.varlink.service.InvalidParameter that names it.
func (d *Description) CheckInput(method string, parameters []byte) error {
	m := d.Method(method)
	if m == nil {
		return fmt.Errorf("varlink: there is no method %s", method)
	}
	return d.check(m.In, parameters)
}

// CheckOutput is CheckInput for a reply of the method.
func (d *Description) CheckOutput(method string, parameters []byte) error {
	m := d.Method(method)
	if m == nil {
		return fmt.Errorf("varlink: there is no method %s", method)
	}
	return d.check(m.Out, parameters)
}

// CheckError is CheckInput for the parameters of an error.
func (d *Description) CheckError(name string, parameters []byte) error {
	e := d.Error(name)
	if e == nil {
		return fmt.Errorf("varlink: there is no error %s", name)
	}
	return d.check(*e, parameters)
}

func (d *Description) check(t Type, parameters []byte) error {
	var v any
	decoder := json.NewDecoder(bytes.NewReader(parameters))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		return invalidParameter(err.Error())
	}
	if wrong := d.fits(t, v, ""); wrong != "" {
		return invalidParameter(wrong)
	}
	return nil
}

// fits returns what of the value does not fit, or "".
func (d *Description) fits(t Type, v any, at string) string {
	where := func() string {
		if at == "" {
			return "the parameters"
		}
		return at
	}
	if v == nil {
		if t.Nullable || t.Kind == Any {
			return ""
		}
		return where() + " is missing"
	}
	wrong := func() string { return fmt.Sprintf("%s must be %s", where(), t.describe()) }
	switch t.Kind {
	case Any:
		return ""
	case Named:
		return d.fits(*d.Type(t.Name), v, at)
	case Bool:
		if _, ok := v.(bool); !ok {
			return wrong()
		}
	case String:
		if _, ok := v.(string); !ok {
			return wrong()
		}
	case Int:
		n, ok := v.(json.Number)
		if _, err := n.Int64(); !ok || err != nil {
			return wrong()
		}
	case Float:
		if _, ok := v.(json.Number); !ok {
			return wrong()
		}
	case Enum:
		if s, ok := v.(string); !ok || !slices.Contains(t.Values, s) {
			return wrong()
		}
	case Array:
		all, ok := v.([]any)
		if !ok {
			return wrong()
		}
		for i, element := range all {
			if s := d.fits(*t.Element, element, fmt.Sprintf("%s[%d]", at, i)); s != "" {
				return s
			}
		}
	case Map:
		all, ok := v.(map[string]any)
		if !ok {
			return wrong()
		}
		for name, element := range all {
			if s := d.fits(*t.Element, element, join(at, name)); s != "" {
				return s
			}
		}
	case Struct:
		all, ok := v.(map[string]any)
		if !ok {
			return wrong()
		}
		for name := range all {
			if find(t.Fields, name) == nil {
				return join(at, name) + " is not known"
			}
		}
		for _, f := range t.Fields {
			if s := d.fits(f.Type, all[f.Name], join(at, f.Name)); s != "" {
				return s
			}
		}
	}
	return ""
}

func join(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

// describe names what a value must be.
func (t Type) describe() string {
	switch t.Kind {
	case Bool:
		return "true or false"
	case Int:
		return "a whole number"
	case Float:
		return "a number"
	case String:
		return "a string"
	case Enum:
		return fmt.Sprintf("one of %q", t.Values)
	case Array:
		return "an array"
	default:
		return "an object"
	}
}
