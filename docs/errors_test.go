package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/declared"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/chain/live"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/internal/cli"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/trace"
	"github.com/holdfast-bpf/holdfast/varlink"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// sentinels are the errors that users of the library and the command can meet.
var sentinels = map[string]error{
	"arbiter.ErrLockTimeout": arbiter.ErrLockTimeout,

	"chain.ErrAction":    chain.ErrAction,
	"chain.ErrAmbiguous": chain.ErrAmbiguous,
	"chain.ErrNoMember":  chain.ErrNoMember,
	"chain.ErrNoRoom":    chain.ErrNoRoom,
	"chain.ErrOrder":     chain.ErrOrder,

	"client.ErrNoDaemon": client.ErrNoDaemon,

	"declared.ErrInvalid": declared.ErrInvalid,

	"fused.ErrLimit":    fused.ErrLimit,
	"fused.ErrNotFused": fused.ErrNotFused,

	"libxdp.ErrDamaged":     libxdp.ErrDamaged,
	"libxdp.ErrFull":        libxdp.ErrFull,
	"libxdp.ErrLockTimeout": libxdp.ErrLockTimeout,
	"libxdp.ErrNoFreplace":  libxdp.ErrNoFreplace,
	"libxdp.ErrNoMember":    libxdp.ErrNoMember,
	"libxdp.ErrPlain":       libxdp.ErrPlain,

	"live.ErrEnabled":       live.ErrEnabled,
	"live.ErrFull":          live.ErrFull,
	"live.ErrLayout":        live.ErrLayout,
	"live.ErrNoFreplace":    live.ErrNoFreplace,
	"live.ErrNotDispatcher": live.ErrNotDispatcher,
	"live.ErrSlotTaken":     live.ErrSlotTaken,

	"object.ErrAmbiguous":    object.ErrAmbiguous,
	"object.ErrBTF":          object.ErrBTF,
	"object.ErrExtension":    object.ErrExtension,
	"object.ErrFormat":       object.ErrFormat,
	"object.ErrLicense":      object.ErrLicense,
	"object.ErrMap":          object.ErrMap,
	"object.ErrNoProgram":    object.ErrNoProgram,
	"object.ErrNotSupported": object.ErrNotSupported,
	"object.ErrPermission":   object.ErrPermission,
	"object.ErrRunConfig":    object.ErrRunConfig,
	"object.ErrVariable":     object.ErrVariable,
	"object.ErrVerifier":     object.ErrVerifier,

	"owned.ErrExclusive":  owned.ErrExclusive,
	"owned.ErrExists":     owned.ErrExists,
	"owned.ErrFull":       owned.ErrFull,
	"owned.ErrGeneration": owned.ErrGeneration,
	"owned.ErrInvalid":    owned.ErrInvalid,
	"owned.ErrLocked":     owned.ErrLocked,
	"owned.ErrNoMember":   owned.ErrNoMember,
	"owned.ErrNotEmpty":   owned.ErrNotEmpty,
	"owned.ErrOrder":      owned.ErrOrder,

	"trace.ErrFilter":      trace.ErrFilter,
	"trace.ErrFused":       trace.ErrFused,
	"trace.ErrUntraceable": trace.ErrUntraceable,
	"varlink.ErrLimit":     varlink.ErrLimit,

	"xdp.ErrAttachType":   xdp.ErrAttachType,
	"xdp.ErrConflict":     xdp.ErrConflict,
	"xdp.ErrDeviceBound":  xdp.ErrDeviceBound,
	"xdp.ErrExists":       xdp.ErrExists,
	"xdp.ErrGone":         xdp.ErrGone,
	"xdp.ErrInvalid":      xdp.ErrInvalid,
	"xdp.ErrMTU":          xdp.ErrMTU,
	"xdp.ErrNotAttached":  xdp.ErrNotAttached,
	"xdp.ErrNotFound":     xdp.ErrNotFound,
	"xdp.ErrNotSupported": xdp.ErrNotSupported,
	"xdp.ErrPermission":   xdp.ErrPermission,
	"xdp.ErrPort":         xdp.ErrPort,
	"xdp.ErrUnexpected":   xdp.ErrUnexpected,
}

// exported finds the sentinels in the source of the packages that others can
// import: variables whose names begin with Err.
func exported(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch d.Name() {
			case "internal", "testdata", "cmd", "examples", "bench", "bin":
				return fs.SkipDir
			}
			if path != root && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			group, ok := decl.(*ast.GenDecl)
			if !ok || group.Tok != token.VAR {
				continue
			}
			for _, spec := range group.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					if strings.HasPrefix(name.Name, "Err") {
						names = append(names, f.Name.Name+"."+name.Name)
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func TestTheSentinelsOfTheTestAreThoseOfTheCode(t *testing.T) {
	if diff := cmp.Diff(exported(t), slices.Sorted(maps.Keys(sentinels))); diff != "" {
		t.Errorf("the code (-) and this test (+) differ:\n%s", diff)
	}
}

// rows are the cells of the tables below a heading of errors.md; without a heading,
// of all.
func rows(t *testing.T, heading string) [][]string {
	t.Helper()
	text, err := os.ReadFile("errors.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	if heading != "" {
		_, below, found := strings.Cut(page, "\n## "+heading+"\n")
		if !found {
			t.Fatalf("errors.md has no heading %q", heading)
		}
		page, _, _ = strings.Cut(below, "\n## ")
	}
	var all [][]string
	for line := range strings.Lines(page) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "| ") {
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			all = append(all, cells)
		}
	}
	return all
}

func TestEachSentinelIsExplainedWithItsCodes(t *testing.T) {
	explained := map[string]bool{}
	for _, cells := range rows(t, "") {
		name := strings.Trim(cells[0], "`")
		if !strings.Contains(name, ".Err") {
			continue
		}
		err, ok := sentinels[name]
		if !ok || explained[name] {
			t.Errorf("%s is explained, and is none, or is explained twice", name)
			continue
		}
		explained[name] = true
		if len(cells) != 5 || cells[3] == "" || cells[4] == "" {
			t.Errorf("%s: what it means, or what to do, is missing", name)
			continue
		}
		if want := fmt.Sprint(cli.ExitCode(err)); cells[1] != want {
			t.Errorf("%s has exit code %s, not %s", name, want, cells[1])
		}
		answer, parameters := wire.Encode(err)
		answer = answer[strings.LastIndex(answer, ".")+1:]
		if parameters.Kind != "" {
			answer += ", " + parameters.Kind
		}
		if cells[2] != answer {
			t.Errorf("%s is %q of the daemon, not %q", name, answer, cells[2])
		}
	}
	for name := range sentinels {
		if !explained[name] {
			t.Errorf("%s is not explained", name)
		}
	}
}

func TestEachErrorOfTheDaemonIsExplained(t *testing.T) {
	declaration := regexp.MustCompile(`(?m)^error ([A-Za-z]+)`)
	var want []string
	for _, path := range []string{"internal/wire/dev.holdfast.Attachments.varlink", "varlink/service.go"} {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range declaration.FindAllSubmatch(text, -1) {
			want = append(want, string(m[1]))
		}
	}
	var got []string
	for _, cells := range rows(t, "Errors of the daemon") {
		if name := strings.Trim(cells[0], "`"); name != "Error" {
			got = append(got, name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("declared (-) and explained (+) differ:\n%s", diff)
	}
}

// The exit codes are told in the reference and in the README, too.
func TestExitCodesAreToldAlike(t *testing.T) {
	reference, err := os.ReadFile("reference/holdfast.md")
	if err != nil {
		t.Fatal(err)
	}
	told := rows(t, "Exit codes")[1:]
	for _, cells := range told {
		row := fmt.Sprintf("| `%s` | %s", cells[0], strings.ReplaceAll(cells[1], "`", ""))
		if !strings.Contains(string(reference), row) {
			t.Errorf("the reference does not have: %s", row)
		}
	}
	if len(told) != 9 {
		t.Errorf("%d exit codes are told", len(told))
	}
}
