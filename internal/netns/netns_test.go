package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestASpecLeadsToThePathOfItsNamespace(t *testing.T) {
	for spec, want := range map[string]string{
		"":                "/proc/thread-self/ns/net",
		"blue":            "/run/netns/blue",
		"blue.green":      "/run/netns/blue.green",
		"...":             "/run/netns/...",
		"/proc/7/ns/net":  "/proc/7/ns/net",
		"./ns":            "./ns",
		"a/b":             "a/b",
		"7":               "/proc/7/ns/net",
		"2147483647":      "/proc/2147483647/ns/net",
		"2147483648":      "/run/netns/2147483648", // more than a pid can be
		"-7":              "/run/netns/-7",
		"0x7":             "/run/netns/0x7",
		"7 ":              "/run/netns/7 ",
		"\x00":            "/run/netns/\x00",
		"..%2fproc%2f1":   "/run/netns/..%2fproc%2f1",
		"name with blank": "/run/netns/name with blank",
	} {
		if got, err := resolve(spec); err != nil || got != want {
			t.Errorf("%q leads to %q (%v), want %q", spec, got, err, want)
		}
	}
	for _, spec := range []string{".", ".."} {
		if got, err := resolve(spec); !errors.Is(err, ErrNotExist) {
			t.Errorf("%q leads to %q (%v)", spec, got, err)
		}
	}
}

// FuzzResolve: a spec without a slash never leaves the directory of names,
// except for a process.
func FuzzResolve(f *testing.F) {
	for _, s := range []string{"blue", ".", "..", "7", "a/../b", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		path, err := resolve(spec)
		switch {
		case err != nil && errors.Is(err, ErrNotExist):
		case err != nil:
			t.Errorf("%q: %v", spec, err)
		case spec == "" || strings.Contains(spec, "/"):
		case filepath.Dir(path) == NamedDir && filepath.Base(path) == spec:
		default:
			var pid int
			if n, err := fmt.Sscanf(path, "/proc/%d/ns/net", &pid); n != 1 || err != nil || path != fmt.Sprintf("/proc/%d/ns/net", pid) {
				t.Errorf("%q leads to %q", spec, path)
			}
		}
	})
}

func TestWhatIsNoNetworkNamespaceDoesNotOpen(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{"no-such-namespace", "4194304", "/proc/self/ns/mnt", file, filepath.Dir(file), file + "-missing"} {
		ns, err := Open(spec)
		if !errors.Is(err, ErrNotExist) || !strings.Contains(fmt.Sprint(err), spec) {
			t.Errorf("%s: %v, %v", spec, ns, err)
		}
	}
}

func TestTheSameNamespaceHasTheSameID(t *testing.T) {
	ambient, err := Ambient.Identify()
	if err != nil {
		t.Fatal(err)
	}
	if ambient.Inode == 0 {
		t.Errorf("this namespace is %+v", ambient)
	}
	if Ambient.FD() >= 0 || Ambient.Spec() != "" || Ambient.Close() != nil {
		t.Errorf("the caller's own namespace is %+v", Ambient)
	}
	if again, err := Ambient.Identify(); err != nil || again != ambient {
		t.Errorf("after a close it is %+v (%v), want %+v", again, err, ambient)
	}
	for id, want := range map[ID]string{{Cookie: 7, Inode: 9}: "c7", {Inode: 4026531840}: "i4026531840"} {
		if id.String() != want {
			t.Errorf("%+v is %s, want %s", id, id, want)
		}
	}
}

func TestAClosedNamespaceIsEnteredByNobody(t *testing.T) {
	for _, spec := range []string{"", "/proc/self/ns/net", fmt.Sprint(os.Getpid())} {
		ns, err := Open(spec)
		if err != nil {
			t.Fatal(err)
		}
		if ns.FD() < 0 || ns.Spec() != spec {
			t.Errorf("%q opened as %+v", spec, ns)
		}
		if err := errors.Join(ns.Close(), ns.Close()); err != nil {
			t.Errorf("closed twice: %v", err)
		}
		if err := ns.Do(func() error { t.Error("the call was made"); return nil }); !errors.Is(err, os.ErrClosed) {
			t.Errorf("a call in it: %v", err)
		}
		if _, err := ns.Identify(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("its id: %v", err)
		}
	}
}

func TestAllNamespacesBeginWithTheCallersOwn(t *testing.T) {
	id, err := Ambient.Identify()
	if err != nil {
		t.Fatal(err)
	}
	all, err := All()
	if err != nil || len(all) == 0 {
		t.Fatalf("%v, %v", all, err)
	}
	if all[0].Spec != "" || all[0].Inode != id.Inode {
		t.Errorf("the first is %+v, want namespace %d", all[0], id.Inode)
	}
	var inodes []uint64
	for _, f := range all {
		inodes = append(inodes, f.Inode)
		if len(f.Names) == 0 && f.Spec != "" {
			t.Errorf("%+v has no name", f)
		}
	}
	slices.Sort(inodes)
	if len(slices.Compact(inodes)) != len(all) {
		t.Errorf("some are there twice: %+v", all)
	}
}
