package docs

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-bpf/holdfast/internal/cli"
	"github.com/holdfast-bpf/holdfast/internal/cli/xdploader"
)

const root = ".."

// documents are all that people read, and people write.
func documents(t *testing.T) map[string]string {
	t.Helper()
	paths := []string{"../README.md", "../CONTRIBUTING.md"}
	var more []string
	for _, pattern := range []string{"*.md", "howto/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		more = append(more, found...)
	}
	texts := map[string]string{}
	for _, path := range append(paths, more...) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = string(b)
	}
	return texts
}

var fence = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

// blocks are the fenced blocks in that language.
func blocks(text, language string) []string {
	var found []string
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		if m[1] == language {
			found = append(found, m[2])
		}
	}
	return found
}

// commands are the command lines of the document's sh blocks, in words, without
// comments.
func commands(text string) [][]string {
	var lines [][]string
	for _, block := range blocks(text, "sh") {
		for line := range strings.SplitSeq(strings.ReplaceAll(block, "\\\n", " "), "\n") {
			line, _, _ = strings.Cut(line, " #")
			line = strings.ReplaceAll(line, "$$", "4711") // as the shell would
			if words := strings.Fields(line); len(words) > 0 && !strings.HasPrefix(words[0], "#") {
				lines = append(lines, words)
			}
		}
	}
	return lines
}

func TestEveryCommandInTheDocumentsCanBeCalledLikeThat(t *testing.T) {
	targets := makeTargets(t)
	checked := map[string]int{}
	for path, text := range documents(t) {
		if path == "tutorial.md" || strings.HasPrefix(path, "howto/") {
			continue // they define words of their own, and docs/docstest runs them
		}
		for _, words := range commands(text) {
			line := strings.Join(words, " ")
			checked[words[0]]++
			switch words[0] {
			case "holdfast":
				if err := parses(words[1:]); err != nil {
					t.Errorf("%s: %s: %v", path, line, err)
				}
			case xdploader.Name:
				if err := xdploader.Parses(words[1:]); err != nil {
					t.Errorf("%s: %s: %v", path, line, err)
				}
			case "make":
				for _, word := range words[1:] {
					if variable, _, ok := strings.Cut(word, "="); ok && !targets.variables[variable] || !ok && !targets.names[word] {
						t.Errorf("%s: %s: the Makefile has no %s", path, line, word)
					}
				}
			case "go":
				for _, word := range words[1:] {
					if strings.HasPrefix(word, "./") {
						exists(t, path, strings.TrimSuffix(word, "/..."))
					}
				}
			case "systemctl":
				unit := words[len(words)-1]
				if !strings.Contains(unit, ".") {
					unit += ".service"
				}
				exists(t, path, filepath.Join("packaging/systemd", unit))
			case "cp":
				exists(t, path, words[1])
			default:
				if strings.HasPrefix(words[0], "scripts/") {
					exists(t, path, words[0])
				} else {
					t.Errorf("%s: %s: this test knows no command %s, so it can't tell whether that works", path, line, words[0])
				}
			}
		}
	}
	for _, command := range []string{"holdfast", "make", "go"} {
		if checked[command] == 0 {
			t.Errorf("no %s command was found in the documents, which has to be wrong", command)
		}
	}
}

// parses tells whether the command takes these arguments and flags, without
// running it.
func parses(args []string) error {
	c, rest, err := cli.New(cli.Env{Args: args, Stdout: io.Discard, Stderr: io.Discard, Getenv: os.Getenv}).Find(args)
	if err != nil {
		return err
	}
	if c.Name() == xdploader.Name {
		return xdploader.Parses(rest)
	}
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	return c.ValidateArgs(c.Flags().Args())
}

// Blocks that can't be run are few, each with its reason.
func TestBlocksThatAreNotRunAreTheseOnly(t *testing.T) {
	var got []string
	texts := documents(t)
	for _, path := range append(Run(), "../README.md") {
		steps, err := Steps(texts[path])
		if err != nil {
			t.Errorf("%s: %v", path, err)
		}
		for _, s := range steps {
			if s.NotRun == "" {
				continue
			}
			words := strings.Fields(s.Code)
			got = append(got, path+": "+strings.Join(words[:min(2, len(words))], " ")+": "+s.NotRun)
		}
	}
	want, err := os.ReadFile("testdata/not-run.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), strings.Join(got, "\n")+"\n"); diff != "" {
		t.Errorf("what is not run is not what testdata/not-run.txt says (-want +got):\n%s", diff)
	}
}

func TestACommandThatDoesNotExistIsFound(t *testing.T) {
	for _, line := range []string{"attach eth0", "attach eth0 filter.o --nonsense", "run eth0 filter.o", "status --netns", "xdp-loader load eth0", "xdp-loader lode eth0 filter.o"} {
		if err := parses(strings.Fields(line)); err == nil {
			t.Errorf("holdfast %s was found to be right", line)
		}
	}
}

type makefile struct{ names, variables map[string]bool }

func makeTargets(t *testing.T) makefile {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	m := makefile{map[string]bool{}, map[string]bool{}}
	for _, target := range regexp.MustCompile(`(?m)^([a-z-]+):`).FindAllSubmatch(b, -1) {
		m.names[string(target[1])] = true
	}
	for _, variable := range regexp.MustCompile(`(?m)^([A-Z_]+) *\?=`).FindAllSubmatch(b, -1) {
		m.variables[string(variable[1])] = true
	}
	return m
}

func exists(t *testing.T, document, path string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(root, path)); err != nil {
		t.Errorf("%s: %v", document, err)
	}
}

func TestRelativeLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	for path, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s: link: %v", path, err)
			}
		}
	}
}

// Paths in backquotes, such as `internal/rtnl`, are meant to be found.
func TestPackagesThatAreNamedExist(t *testing.T) {
	name := regexp.MustCompile("`((?:internal|cmd|examples|scripts|docs|bpf|bench|arbiter|chain|features|object|xdp)(?:/[A-Za-z0-9_./-]+)?)`")
	for path, text := range documents(t) {
		for _, m := range name.FindAllStringSubmatch(text, -1) {
			exists(t, path, strings.TrimSuffix(m[1], "/..."))
		}
	}
}

func TestTheGoCodeInTheDocumentsIsPartOfAnExample(t *testing.T) {
	var flat []byte
	for _, name := range []string{"example_test.go", "xdp/example_test.go", "client/example_test.go"} {
		example, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		// In the example it is indented once more.
		flat = append(flat, bytes.ReplaceAll(example, []byte("\n\t"), []byte("\n"))...)
	}
	found := 0
	for path, text := range documents(t) {
		for _, code := range blocks(text, "go") {
			found++
			if !bytes.Contains(flat, []byte(code)) {
				t.Errorf("%s: this is in no example:\n%s", path, code)
			}
		}
	}
	if found == 0 {
		t.Error("the documents have no Go code, which has to be wrong")
	}
}

// What libxdp.md says about who does what is what the tests expect.
func TestTheTableOfInteroperabilityIsTheOneThatIsTested(t *testing.T) {
	table, err := os.ReadFile(filepath.Join(root, "chain/libxdp/peertest/testdata/interoperability.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := documents(t)["libxdp.md"]
	if !strings.Contains(text, "\n\n"+string(table)+"\n") {
		t.Errorf("libxdp.md does not have this table:\n%s", table)
	}
}

// What engines.md says about what can't be done is what the tests want.
func TestTheTableOfLimitsIsTheOneThatIsTested(t *testing.T) {
	table, err := os.ReadFile(filepath.Join(root, "chain/enginetest/testdata/limits.md"))
	if err != nil {
		t.Fatal(err)
	}
	text := documents(t)["engines.md"]
	if !strings.Contains(text, "\n\n"+string(table)+"\n") {
		t.Errorf("engines.md does not have this table:\n%s", table)
	}
}
