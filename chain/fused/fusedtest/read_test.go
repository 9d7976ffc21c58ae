package fusedtest

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

func TestTheKernelTellsWhoIsInTheChain(t *testing.T) {
	kerneltest.NoLeaks(t)
	want := []fused.Entry{
		{Name: "guard", Priority: 0, ProceedOn: chain.Set(chain.Pass, chain.Drop)},
		{Name: "été-2 / _x_.eth0", Priority: 1<<32 - 1, ProceedOn: 0},
		{Name: strings.Repeat("a very long name, ", 20), Priority: 50, ProceedOn: chain.Set(chain.AllActions()...)},
	}
	var members []fused.Member
	for _, e := range want {
		m := member(t, "pass", "", e.ProceedOn)
		m.Name, m.Priority = e.Name, e.Priority
		members = append(members, m)
	}
	p := load(t, members...)
	got, err := fused.Read(kerneltest.ProgramID(t, p))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAProgramOfSomebodyElseIsNoChain(t *testing.T) {
	kerneltest.NoLeaks(t)
	for name, id := range map[string]uint32{
		"without type information": kerneltest.ProgramID(t, kerneltest.Pass(t, "pass", nil)),
		"of the same name":         kerneltest.ProgramID(t, kerneltest.Pass(t, "holdfast_chain", nil)),
		"of one object":            kerneltest.ProgramID(t, kerneltest.Load(t, "pass", nil).Programs["xdp_pass"]),
		"a member alone":           kerneltest.ProgramID(t, load(t, member(t, "pass", "", onPass))),
	} {
		if _, err := fused.Read(id); !errors.Is(err, fused.ErrNotFused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := fused.Read(1 << 30); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
}
