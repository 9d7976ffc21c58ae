package clitest

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// Debian's xdp-tools and libxdp1 bring programs that know nothing of Holdfast.
func TestObjectsWrittenElsewhereAreAttachedReplacedAndDetached(t *testing.T) {
	files, err := filepath.Glob("/usr/lib/*/bpf/x*.o")
	if err != nil {
		t.Fatal(err)
	}
	attached := map[string]bool{}
	sample := kerneltest.OneOf(3)
	for i, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".o")
		if strings.HasPrefix(name, "xdpfilt_") && !sample.Takes(i) {
			continue // a dozen builds of one source
		}
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			switch name {
			case "xdpdump_bpf": // fentry and fexit
				m.holdfast("attach", m.NearName, path).fails(7, path, "there is no XDP program")
				m.holds(0)
				return
			case "xdp-dispatcher":
				m.holdfast("attach", m.NearName, path).fails(2, path, "xdp_dispatcher", "xdp_pass", "--program")
				m.holds(0)
				m.holdfast("attach", m.NearName, path, "--program", "xdp_pass").succeeds()
				return
			}
			at := decode[hookStatus](m.holdfast("attach", m.NearName, path, "-o", "json"), "attachment")
			m.holds(at.Program.ID)
			attached[name] = true

			// By another, and by itself again.
			m.holdfast("replace", m.NearName, kerneltest.ObjectFile(t, "pass")).succeeds()
			again := decode[hookStatus](m.holdfast("replace", m.NearName, path, "--expect", itoa(m.native()), "-o", "json"), "attachment")
			m.holds(again.Program.ID)
			if again.LinkID != at.LinkID || again.Program.Tag != at.Program.Tag {
				t.Errorf("%+v was replaced by %+v", at, again)
			}
			m.holdfast("detach", m.NearName, "--expect", itoa(again.Program.ID)).succeeds()
			m.holds(0)

			shared := decode[hookStatus](m.holdfast("attach", m.NearName, path, "--shared", "--single", "-o", "json"), "attachment")
			m.holds(shared.Program.ID)
			m.holdfast("detach", m.NearName).succeeds()
			m.holds(0)
		})
	}
	for _, name := range []string{"xdpfilt_", "xsk_def_xdp_prog", "xdpdump_xdp"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(attached)), func(s string) bool { return strings.HasPrefix(s, name) }) {
			t.Errorf("%s was not attached; the packages xdp-tools and libxdp1 have it", name)
		}
	}
}
