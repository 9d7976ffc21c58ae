package vm

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAProgramsLibrariesAndTheirsAreFound(t *testing.T) {
	found, missing, err := libraries("/", "/usr/bin/env")
	if err != nil {
		t.Fatal(err)
	}
	if len(missing) > 0 {
		t.Errorf("not found: %v", missing)
	}
	names := slices.Sorted(maps.Keys(found))
	for _, want := range []string{"ld-linux-x86-64.so.2", "libc.so.6"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not among %v", want, names)
		}
	}
}

func TestLibrariesThatAreNotThereAreNamed(t *testing.T) {
	_, missing, err := libraries(t.TempDir(), "/usr/bin/env")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"libc.so.6"}, missing); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAPeerIsArrangedOfUnpackedPackages(t *testing.T) {
	root := t.TempDir()
	for path, content := range map[string]string{
		"usr/sbin/xdp-loader":                             "program",
		"usr/lib/x86_64-linux-gnu/libbpf.so.1.2.3":        "library",
		"usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2":   "loader",
		"usr/lib/x86_64-linux-gnu/something-else.so.1":    "not needed",
		"usr/share/doc/xdp-tools/a-file-of-another-kind":  "not needed",
		"usr/lib/x86_64-linux-gnu/bpf/xdp-dispatcher.o":   "not needed",
		"usr/lib/x86_64-linux-gnu/bpf/xsk_def_xdp_prog.o": "not needed",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lib := filepath.Join(root, "usr/lib/x86_64-linux-gnu")
	if err := os.Symlink("libbpf.so.1.2.3", filepath.Join(lib, "libbpf.so.1")); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "peer")
	err := arrangePeer(root, map[string]string{
		"libbpf.so.1":          filepath.Join(lib, "libbpf.so.1"),
		"ld-linux-x86-64.so.2": filepath.Join(lib, "ld-linux-x86-64.so.2"),
	}, "1.5.4-1", dir)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	files, err := Dir(dir, "/")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		content, err := os.ReadFile(f.Host)
		if err != nil {
			t.Fatal(err)
		}
		got[f.Guest] = string(content)
	}
	want := map[string]string{"/xdp-loader": "program", "/lib/libbpf.so.1": "library", "/ld.so": "loader", "/version": "1.5.4-1\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAPeerThatIsNotThereSaysHowToGetIt(t *testing.T) {
	t.Setenv("HOLDFAST_CACHE", t.TempDir())
	if _, err := OpenPeer("1.5"); err == nil || !strings.Contains(err.Error(), "peer 1.5") {
		t.Errorf("%v", err)
	}
	if _, err := FetchPeer(context.Background(), "0.9", t.Logf); err == nil || !strings.Contains(err.Error(), "there are 1.3, 1.5, 1.6") {
		t.Errorf("%v", err)
	}
}
