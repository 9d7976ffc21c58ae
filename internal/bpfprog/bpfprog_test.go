package bpfprog

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

func TestEverySourceHasItsObject(t *testing.T) {
	sources, err := filepath.Glob("../../bpf/*.c")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, s := range sources {
		name := strings.TrimSuffix(filepath.Base(s), ".c")
		if slices.Contains([]string{"dispatcher", "live", "trace"}, name) {
			continue // They belong to the packages that load them, chain/libxdp, chain/live and trace.
		}
		want = append(want, name)
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, Names()); diff != "" {
		t.Errorf("sources (-) and objects (+) differ, run go generate:\n%s", diff)
	}
}

func TestObjectsParseAndKeepTheirTypes(t *testing.T) {
	for _, name := range Names() {
		spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(ELF(name)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if spec.Types == nil {
			t.Errorf("%s has no BTF: it was stripped too far", name)
		}
	}
}

func TestObjectsTellNothingOfTheMachineTheyWereBuiltOn(t *testing.T) {
	for _, name := range Names() {
		for _, path := range []string{"/home/", "/root/", "/tmp/", "/usr/", "/build/"} {
			if bytes.Contains(ELF(name), []byte(path)) {
				t.Errorf("%s contains the path %s", name, path)
			}
		}
	}
}

func TestAnUnknownObjectPanicsWithTheKnownOnes(t *testing.T) {
	defer func() {
		if msg, _ := recover().(string); !strings.Contains(msg, "filter") {
			t.Errorf("panic %q does not name the objects", msg)
		}
	}()
	ELF("missing")
}
