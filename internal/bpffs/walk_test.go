package bpffs

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// tree has two files, a directory with one, and what is not to be walked.
func tree(t *testing.T) *Root {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"a", "d"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"b", "c", "a/x", "maps.debug"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"file": "/etc/passwd", "elsewhere": "/", "here": "a"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &Root{dir: f, Name: dir}
}

func TestPinsAreWalkedInOrderAndNoLinkIsFollowed(t *testing.T) {
	var names []string
	root := tree(t)
	root.WalkPins(nil, func(name, pin string) {
		names = append(names, name)
		a, err1 := os.Stat(pin)
		b, err2 := os.Stat(filepath.Join(root.Name, name))
		if err1 != nil || err2 != nil || !os.SameFile(a, b) {
			t.Errorf("%s does not lead to %s (%v, %v)", pin, name, err1, err2)
		}
	})
	if !slices.Equal(names, []string{"a/x", "b", "c"}) {
		t.Errorf("the pins are %q", names)
	}
}

func TestAWalkEndsWithItsBudget(t *testing.T) {
	later := time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		budget *Budget
		spent  bool
	}{
		"enough":           {&Budget{Entries: 9, Until: later}, false},
		"too few entries":  {&Budget{Entries: 8, Until: later}, true},
		"no entries":       {&Budget{Until: later}, true},
		"no time":          {&Budget{Entries: 100, Until: time.Now().Add(-time.Hour)}, true},
		"without a budget": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			tree(t).WalkPins(c.budget, func(string, string) { n++ })
			if c.budget.Spent() != c.spent || !c.spent && n != 3 || c.spent && n == 3 {
				t.Errorf("spent: %t, want %t, after %d pins", c.budget.Spent(), c.spent, n)
			}
		})
	}
}
