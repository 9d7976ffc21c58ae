package wire

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/varlink"
)

// fill gives every field a value, so that none is left out when it is written.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1, 0)))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i))
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		element := reflect.New(v.Type().Elem()).Elem()
		fill(element)
		v.SetMapIndex(reflect.New(v.Type().Key()).Elem(), element)
	case reflect.String:
		v.SetString(words[v.Type().Name()])
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(1)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	}
}

// words are values of types that take some words only.
var words = map[string]string{"string": "word", "Op": "add", "Lifetime": "held", "Engine": "live", "Verb": "attach", "EventKind": "moved"}

// What Go writes is what the interface takes, and all that it takes is in Go's types.
func TestTheInterfaceAndItsTypesAgree(t *testing.T) {
	d, err := varlink.Parse(Description)
	if err != nil {
		t.Fatal(err)
	}
	if d.Name != Interface {
		t.Errorf("the interface is called %s", d.Name)
	}
	methods := map[string]struct{ in, out any }{
		"Apply": {Apply{}, Applied{}}, "Attach": {Attach{}, Applied{}}, "Replace": {Replace{}, Applied{}}, "Detach": {Detach{}, Outcome{}},
		"Set": {Set{}, Outcome{}}, "Adopt": {Adopt{}, AdoptReply{}}, "Lock": {Lock{}, Empty{}}, "Unlock": {Lock{}, Empty{}},
		"Acknowledge": {Empty{}, Empty{}}, "Slot": {Slot{}, SlotReply{}}, "Claim": {Claim{}, ClaimReply{}}, "Get": {Get{}, GetReply{}}, "List": {List{}, ListReply{}},
		"Collect": {Collect{}, CollectReply{}}, "Watch": {Watch{}, WatchReply{}}, "Features": {Empty{}, FeaturesReply{}},
		"May": {May{}, MayReply{}}, "Reload": {Empty{}, Empty{}},
	}
	for _, m := range d.Methods {
		types, ok := methods[m.Name]
		if !ok {
			t.Errorf("method %s has no types", m.Name)
			continue
		}
		for way, c := range map[string]struct {
			value any
			typ   varlink.Type
			check func(string, []byte) error
		}{"in": {types.in, m.In, d.CheckInput}, "out": {types.out, m.Out, d.CheckOutput}} {
			v := reflect.New(reflect.TypeOf(c.value)).Elem()
			fill(v)
			b, err := json.Marshal(v.Interface())
			if err != nil {
				t.Fatal(err)
			}
			if err := c.check(m.Name, b); err != nil {
				t.Errorf("%s, %s: %s: %v", m.Name, way, b, err)
			}
			var fields map[string]any
			if err := json.Unmarshal(b, &fields); err != nil {
				t.Fatal(err)
			}
			for _, f := range c.typ.Fields {
				if _, ok := fields[f.Name]; !ok {
					t.Errorf("%s, %s: Go has no %s", m.Name, way, f.Name)
				}
			}
		}
	}
	for _, e := range d.Errors {
		v := reflect.New(reflect.TypeFor[ErrorParameters]()).Elem()
		fill(v)
		b, err := json.Marshal(v.Interface())
		if err != nil {
			t.Fatal(err)
		}
		if err := d.CheckError(e.Name, b); err != nil {
			t.Errorf("%s: %s: %v", e.Name, b, err)
		}
	}
}
