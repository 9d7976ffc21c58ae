package fused

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-bpf/holdfast/chain"
)

func TestADescriptionIsReadAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Entry {
			return Entry{
				Name:      rapid.String().Draw(t, "name"),
				Priority:  rapid.Uint32().Draw(t, "priority"),
				ProceedOn: chain.Set(rapid.SliceOf(rapid.SampledFrom(chain.AllActions())).Draw(t, "actions")...),
			}
		}), 1, 40).Draw(t, "entries")
		e := describe(want)
		for _, v := range e.Values {
			// KSYM_NAME_LEN of older kernels.
			if len(v.Name) > 127 || v.Name != identifier(v.Name) {
				t.Fatalf("the kernel would not take %q", v.Name)
			}
		}
		got, err := parseDescription(e)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

func TestActionsThatAreNoneAreNotTold(t *testing.T) {
	got, err := parseDescription(describe([]Entry{{Name: "x", ProceedOn: 1<<31 | chain.DefaultProceedOn}}))
	if err != nil || got[0].ProceedOn != chain.DefaultProceedOn {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestWhatDescribesNoChainIsToldFromWhatIsDamaged(t *testing.T) {
	values := func(v ...any) (all []btf.EnumValue) {
		for i := 0; i < len(v); i += 2 {
			all = append(all, btf.EnumValue{Name: v[i].(string), Value: uint64(v[i+1].(int))})
		}
		return all
	}
	number := &btf.Int{Name: "int", Size: 4}
	for name, c := range map[string]struct {
		typ  btf.Type
		want error
	}{
		"a number":           {number, ErrNotFused},
		"another enum":       {&btf.Enum{Name: "xdp_action"}, ErrNotFused},
		"a newer version":    {&btf.Enum{Name: "holdfast_chain_2"}, ErrNotFused},
		"of no members":      {&btf.Enum{Name: descriptionName}, errDescription},
		"without a priority": {&btf.Enum{Name: descriptionName, Values: values("proceed_on_0", 4, "name_0_x", 0)}, errDescription},
		"without actions":    {&btf.Enum{Name: descriptionName, Values: values("priority_0", 50, "name_0_x", 0)}, errDescription},
		"without a name":     {&btf.Enum{Name: descriptionName, Values: values("priority_0", 50, "proceed_on_0", 4)}, errDescription},
		"without a member":   {&btf.Enum{Name: descriptionName, Values: values("priority_1", 50, "proceed_on_1", 4, "name_1_x", 0)}, errDescription},
		"with more":          {&btf.Enum{Name: descriptionName, Values: values("priority_0", 50, "proceed_on_0", 4, "name_0_x", 0, "more", 0)}, errDescription},
		"with no action":     {&btf.Enum{Name: descriptionName, Values: values("priority_0", 50, "proceed_on_0", 64, "name_0_x", 0)}, errDescription},
		"of half a byte":     {&btf.Enum{Name: descriptionName, Values: values("priority_0", 50, "proceed_on_0", 4, "name_0_x_2", 0)}, errDescription},
		"escaped in vain":    {&btf.Enum{Name: descriptionName, Values: values("priority_0", 50, "proceed_on_0", 4, "name_0__61", 0)}, errDescription},
		"with parts swapped": {&btf.Enum{Name: descriptionName, Values: values("priority_0", 50, "proceed_on_0", 4, "name_0_x", 1, "name_0_y", 0)}, errDescription},
	} {
		if got, err := parseDescription(c.typ); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// FuzzParseDescription reads names and, after each, four bytes of a value. What
// is taken for a description must be the only one of what it says.
func FuzzParseDescription(f *testing.F) {
	for _, entries := range [][]Entry{
		{{Name: "xdp-filter", Priority: 10, ProceedOn: chain.DefaultProceedOn}},
		{{}, {Name: strings.Repeat("_x", 100), Priority: 1<<32 - 1, ProceedOn: 31}},
	} {
		var b []byte
		for _, v := range describe(entries).Values {
			b = append(append(b, v.Name...), 0)
			b = binary.LittleEndian.AppendUint32(b, uint32(v.Value))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e := &btf.Enum{Name: descriptionName, Size: 4}
		for len(b) > 0 {
			name, rest, _ := strings.Cut(string(b), "\x00")
			b = []byte(rest)
			value := make([]byte, 4)
			b = b[copy(value, b):]
			e.Values = append(e.Values, btf.EnumValue{Name: name, Value: uint64(binary.LittleEndian.Uint32(value))})
		}
		entries, err := parseDescription(e)
		if err != nil {
			return
		}
		if diff := cmp.Diff(e, describe(entries)); diff != "" {
			t.Errorf("%+v is described in another way:\n%s", entries, diff)
		}
	})
}
