package clitest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

func TestAHookBecomesWhatAFileDeclaresAndIsExportedAsSuch(t *testing.T) {
	m := newMachine(t)
	path := filepath.Join(t.TempDir(), "chains.yaml")
	declare := func(port int, rest string) {
		t.Helper()
		text := fmt.Sprintf(`version: 1
hooks:
- interface: %s
  members:
  - name: guard
    object: %s
    priority: 10
    set: {drop_port: "%d"}
%s`, m.NearName, kerneltest.ObjectFile(t, "filter"), port, rest)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sample := "  - name: sample\n    object: " + kerneltest.ObjectFile(t, "pass") + "\n"
	apply := func(args ...string) string {
		t.Helper()
		r := m.holdfast(append([]string{"apply", "-f", path}, args...)...)
		if r.code != 0 {
			t.Fatalf("apply: exit code %d: %s", r.code, r.err)
		}
		return r.out
	}
	declare(53, sample)
	if out := apply("--dry-run"); !strings.Contains(out, "would change") || !strings.Contains(out, "+guard") {
		t.Errorf("a dry run says %q", out)
	}
	m.empties()
	apply()
	if m.action(53) != 1 || m.action(54) != 2 {
		t.Error("what was declared does not run")
	}
	if out := apply(); !strings.Contains(out, "as declared") {
		t.Errorf("again it says %q", out)
	}
	declare(54, sample)
	apply()
	if m.action(53) != 2 || m.action(54) != 1 {
		t.Error("the variable that was declared anew has its old value")
	}
	// What is exported is what was declared.
	exported := m.holdfast("export", m.NearName)
	if exported.code != 0 {
		t.Fatal(exported.err)
	}
	if err := os.WriteFile(path, []byte(exported.out), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := apply("--dry-run", "--prune"); !strings.Contains(out, "as declared") {
		t.Errorf("what was exported is not what runs: %q", out)
	}
	declare(54, "")
	apply()
	if out := apply("--prune"); !strings.Contains(out, "-sample") {
		t.Errorf("pruning says %q", out)
	}
	m.holdfast("detach", m.NearName, "--all")

	// What is wrong is told with its place, and nothing is changed.
	declare(54, "  - nane: sample\n")
	if r := m.holdfast("apply", "-f", path); r.code != 2 || !strings.Contains(r.err, ":9:") {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	declare(54, "  - name: sample\n    object: nowhere.o\n")
	if r := m.holdfast("apply", "-f", path); r.code != 7 {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	m.empties()
	if r := m.holdfast("export", m.NearName); r.code != 7 {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
}
