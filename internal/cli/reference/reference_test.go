package reference

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/internal/cli"
)

func pages() []Page {
	return Pages(cli.New(cli.Env{Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}, Getenv: func(string) string { return "" }}))
}

const committed = "../../../docs/reference"

func TestTheCommittedPagesAreThoseOfTheCommand(t *testing.T) {
	all := pages()
	want := map[string]string{}
	for _, p := range all {
		want[p.Name+".md"] = p.Markdown(all)
	}
	found, err := filepath.Glob(filepath.Join(committed, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		name := filepath.Base(path)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if want[name] != string(b) {
			t.Errorf("%s is not what the command says: run go generate ./docs", name)
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s is missing: run go generate ./docs", name)
	}
}

func TestHiddenCommandsAndFlagsAreNotShown(t *testing.T) {
	root := &cobra.Command{Use: "holdfast", Short: "Do it"}
	root.AddCommand(
		&cobra.Command{Use: "shown", Short: "Show", Run: func(*cobra.Command, []string) {}},
		&cobra.Command{Use: "hidden", Short: "Hide", Hidden: true, Run: func(*cobra.Command, []string) {}},
	)
	root.Flags().Bool("secret", false, "told nobody")
	if err := root.Flags().MarkHidden("secret"); err != nil {
		t.Fatal(err)
	}
	all := Pages(root)
	for _, p := range all {
		if text := p.Markdown(all) + p.Man("v1"); strings.Contains(text, "hidden") || strings.Contains(text, "secret") {
			t.Errorf("%s tells what is hidden:\n%s", p.Name, text)
		}
	}
}

func TestPlainTextIsNotReadAsMarkup(t *testing.T) {
	p := Page{
		Name: "holdfast-x", Command: "holdfast x", Short: "Do <this> *and* that", Usage: "holdfast x",
		Description: []string{".TH is no macro here, 'neither\n'is \\this, and 'holdfast x'\nis a link"},
	}
	markdown := p.Markdown([]Page{p})
	for _, want := range []string{`is \\this, and [holdfast x](holdfast-x.md)`, `Do \<this> \*and\* that.`} {
		if !strings.Contains(markdown, want) {
			t.Errorf("this is not in it: %s\n%s", want, markdown)
		}
	}
	man := p.Man("v1")
	if !strings.Contains(man, "\n\\&.TH is no macro here, \\(aqneither\n\\(aqis \\ethis, and") {
		t.Errorf("%s", man)
	}
}

var macros = regexp.MustCompile(`^\.(TH|nh|ad l|SH|PP|TP|B|nf|fi|RS|RE)\b`)

func TestManualPagesUseTheMacrosThatTheyMean(t *testing.T) {
	for _, p := range pages() {
		for line := range strings.Lines(p.Man("v1.0-test")) {
			if strings.HasPrefix(line, "'") || strings.HasPrefix(line, ".") && !macros.MatchString(line) {
				t.Errorf("%s: %q is a request by accident", p.Name, line)
			}
			for _, r := range line {
				if r > 126 {
					t.Errorf("%s: %q is not ASCII, which old pagers want", p.Name, line)
					break
				}
			}
		}
	}
}

// Exit codes are constants of the command.
func TestExitCodesAreThoseOfTheCommand(t *testing.T) {
	var want []string
	for i := range constants(t) {
		want = append(want, string(rune('0'+i)))
	}
	var got []string
	for _, f := range exitCodes {
		got = append(got, f.name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("exit codes %v are described, and the command has %v", got, want)
	}
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range exitCodes {
		if line := "| " + f.name + " | " + f.meaning + " |"; !strings.Contains(strings.ReplaceAll(string(readme), "`", ""), line) {
			t.Errorf("the README does not say: %s", line)
		}
	}
}

// constants are the names exit… of the command.
func constants(t *testing.T) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../cli.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	ast.Inspect(f, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 && strings.HasPrefix(spec.Names[0].Name, "exit") {
			if _, ok := spec.Values[0].(*ast.BasicLit); ok {
				names = append(names, spec.Names[0].Name)
			}
		}
		return true
	})
	if len(names) == 0 {
		t.Fatal("the command has no exit codes, which has to be wrong")
	}
	return names
}

func TestEachVariableThatTheCommandReadsIsDescribed(t *testing.T) {
	read := map[string]bool{}
	getenv := regexp.MustCompile(`[gG]etenv\("([A-Z_]+)"\)`)
	for _, pattern := range []string{"../*.go", "../xdploader/*.go"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range getenv.FindAllSubmatch(b, -1) {
				read[string(m[1])] = true
			}
		}
	}
	var described []string
	for _, f := range environment {
		described = append(described, f.name)
	}
	slices.Sort(described)
	if want := slices.Sorted(maps.Keys(read)); !slices.Equal(described, want) {
		t.Errorf("described are %v, and read are %v", described, want)
	}
}
