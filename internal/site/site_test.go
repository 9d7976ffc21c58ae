package site

import (
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

// build makes the site of this repository, and returns its files.
func build(t *testing.T) map[string]string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "site")
	if err := Build(os.DirFS("../.."), out); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	err := fs.WalkDir(os.DirFS(out), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(out, name))
		files[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

var (
	links = regexp.MustCompile(`(?:href|src)="([^"]*)"`)
	ids   = regexp.MustCompile(`id="([^"]*)"`)
)

func TestEachLinkLeadsToAPageAndAPlaceOfIt(t *testing.T) {
	files := build(t)
	places := map[string]bool{}
	for name, content := range files {
		places[name] = true
		for _, m := range ids.FindAllStringSubmatch(content, -1) {
			places[name+"#"+m[1]] = true
		}
	}
	checked := 0
	for name, content := range files {
		if !strings.HasSuffix(name, ".html") {
			continue
		}
		for _, m := range links.FindAllStringSubmatch(content, -1) {
			u, err := url.Parse(strings.ReplaceAll(m[1], "&amp;", "&"))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if u.Scheme != "" {
				if u.Scheme != "https" {
					t.Errorf("%s: %s is not https", name, m[1])
				}
				continue
			}
			if path.IsAbs(u.Path) {
				t.Errorf("%s: %s is not relative, and the site may lie anywhere", name, m[1])
			}
			target := name
			if u.Path != "" {
				target = path.Join(path.Dir(name), u.Path)
			}
			if u.Fragment != "" {
				target += "#" + u.Fragment
			}
			if !places[target] {
				t.Errorf("%s: %s leads nowhere", name, m[1])
			}
			checked++
		}
	}
	if checked == 0 {
		t.Error("the site has no links, which has to be wrong")
	}
}

func TestEachDocumentIsAPageAndInTheNavigation(t *testing.T) {
	files := build(t)
	repository := os.DirFS("../..")
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/howto/*.md", "docs/reference/*.md"} {
		found, err := fs.Glob(repository, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, source := range found {
			if _, ok := files[address(source)]; !ok {
				t.Errorf("%s is no page", source)
			}
			if !strings.Contains(files["index.html"], `<li><a href="`+address(source)+`"`) {
				t.Errorf("%s is not in the navigation", source)
			}
		}
	}
}

func TestPagesNeedNothingButTheirStyleSheet(t *testing.T) {
	for name, content := range build(t) {
		if !strings.HasSuffix(name, ".html") {
			continue
		}
		for _, unwanted := range []string{"<script", "<iframe", "@import", "raw HTML omitted", "<!-- sh", "<!-- not run", "<!-- fails"} {
			if strings.Contains(content, unwanted) && !strings.HasPrefix(name, "source/") && name != "contributing.html" {
				t.Errorf("%s has %s", name, unwanted)
			}
		}
		if strings.Count(content, "<h1") != 1 {
			t.Errorf("%s has %d titles", name, strings.Count(content, "<h1"))
		}
	}
}

// repository is a small one, with every page that the navigation names.
func repository(readme string) fstest.MapFS {
	files := fstest.MapFS{"README.md": {Data: []byte(readme)}}
	for _, c := range chapters {
		for _, pattern := range c.pages {
			if pattern != "README.md" {
				files[strings.ReplaceAll(pattern, "*", "any")] = &fstest.MapFile{Data: []byte("# A page\n")}
			}
		}
	}
	return files
}

func TestALinkThatLeadsNowhereFailsTheBuild(t *testing.T) {
	if err := Build(repository("# Title\n\n[here](docs/tutorial.md)\n"), t.TempDir()); err != nil {
		t.Errorf("a link that leads somewhere: %v", err)
	}
	for name, readme := range map[string]string{
		"a file that there is not": "# Title\n\n[here](docs/nothing.md)\n",
		"a directory":              "# Title\n\n[here](docs)\n",
		"no title":                 "text\n",
	} {
		if err := Build(repository(readme), t.TempDir()); err == nil {
			t.Errorf("%s was built", name)
		}
	}
}

func TestWhatIsForTheTestsIsNotShown(t *testing.T) {
	out := t.TempDir()
	readme := "# Title\n\n<!-- sh\nsecret\n-->\n\n<!-- fails: 4 -->\n```sh\nshown\n```\n"
	if err := Build(repository(readme), out); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(out, "index.html"))
	if err != nil {
		t.Fatal(err)
	}
	if s := string(b); !strings.Contains(s, "shown") || strings.Contains(s, "secret") || strings.Contains(s, "fails") {
		t.Errorf("%s", s)
	}
}
