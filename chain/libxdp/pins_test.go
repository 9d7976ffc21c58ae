package libxdp

import (
	"strings"
	"testing"
)

func TestDirectoriesAreReadAsTheyAreNamed(t *testing.T) {
	for name, want := range map[string][2]int{
		"dispatch-17-586":              {17, 586},
		"dispatch-2147483647-42949672": {2147483647, 42949672},
	} {
		index, dispatcher, ok := parseDirName(name)
		if !ok || index != want[0] || int(dispatcher) != want[1] {
			t.Errorf("%s: %d, %d, %v", name, index, dispatcher, ok)
		}
	}
	for _, name := range []string{
		"", "dispatch", "dispatch-", "dispatch-1", "dispatch-1-", "dispatch--1-2", "dispatch-1-2-3", "dispatch-01-2",
		"dispatch-1-02", "dispatch-+1-2", "dispatch-1-2 ", "dispatch-1-4294967296", "dispatch-2147483648-1", "1-2", "prog0-prog",
	} {
		if index, dispatcher, ok := parseDirName(name); ok {
			t.Errorf("%q is taken for the directory of %d, %d", name, index, dispatcher)
		}
	}
}

func FuzzDirName(f *testing.F) {
	for _, s := range []string{"dispatch-17-586", "dispatch-0-0", "dispatch-", "dispatch-1-2-3", "dispatch--1-1", "../dispatch-1-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		index, dispatcher, ok := parseDirName(name)
		if ok && dirName(index, dispatcher) != name {
			t.Errorf("%q is taken for %q", name, dirName(index, dispatcher))
		}
		if (ok || isPinName(name)) && strings.ContainsAny(name, "/\x00.") {
			t.Errorf("%q leads elsewhere", name)
		}
	})
}

func TestOnlyPinsOfTheProtocolAreRemoved(t *testing.T) {
	for _, name := range []string{"prog0-prog", "prog0-link", "prog9-prog", "prog9-link"} {
		if !isPinName(name) {
			t.Errorf("%s is not known", name)
		}
	}
	for _, name := range []string{"prog10-prog", "prog-prog", "prog0", "prog0-map", "Prog0-link", "prog00-link", "", "x"} {
		if isPinName(name) {
			t.Errorf("%q is taken for a pin of the protocol", name)
		}
	}
}
