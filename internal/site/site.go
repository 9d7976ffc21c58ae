// Package site renders the documentation as a site: pages of plain HTML with one
// style sheet, that lie anywhere, need no server and no JavaScript. What the
// documents link in the repository beside themselves comes along, so that no link
// leads out of the site but those that say so.
package site

import (
	"bytes"
	"cmp"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/text"
)

//go:embed page.html style.css
var assets embed.FS

const styleSheet = "style.css"

var layout = template.Must(template.ParseFS(assets, "page.html"))

// page is one document.
type page struct {
	Source string // in the repository, with slashes
	Path   string // in the site
	Title  string

	markdown []byte
	tree     ast.Node
	Sections []section // headings of the second level
}

type section struct{ ID, Title string }

// chapter is a part of the navigation.
type chapter struct {
	Title string
	Pages []*page
}

// chapters say what comes where. A page of docs that is in none of them is a guide.
var chapters = []struct {
	title string
	pages []string
}{
	{"Begin", []string{"README.md", "docs/tutorial.md"}},
	{"How to", []string{"docs/howto/*.md"}},
	{guides, []string{"docs/daemon.md", "docs/policy.md", "docs/engines.md", "docs/libxdp.md"}},
	{"Reference", []string{"docs/errors.md", "docs/reference/holdfast.md", "docs/reference/*.md"}},
	{"Background", []string{"docs/architecture.md", "docs/benchmarks.md", "docs/load.md", "CONTRIBUTING.md"}},
}

const guides = "Guides"

// Build writes the site of the repository into a directory, which it empties first.
func Build(repository fs.FS, out string) error {
	s, err := read(repository)
	if err != nil {
		return err
	}
	files, err := s.render()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		target := filepath.Join(out, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, files[name], 0o644); err != nil {
			return err
		}
	}
	return nil
}

// site is what was read of a repository.
type site struct {
	repository fs.FS
	markdown   goldmark.Markdown
	pages      map[string]*page // by source
	chapters   []chapter
	order      []*page           // as they are read from the first to the last
	sources    map[string]string // files that pages link, and where they are in the site
}

func read(repository fs.FS) (*site, error) {
	s := &site{
		repository: repository,
		markdown: goldmark.New(
			goldmark.WithExtensions(extension.Table, extension.Strikethrough, extension.Linkify),
			goldmark.WithParserOptions(parser.WithAutoHeadingID()),
		),
		pages: map[string]*page{}, sources: map[string]string{},
	}
	for _, c := range chapters {
		part := chapter{Title: c.title}
		for _, pattern := range c.pages {
			if err := s.add(&part, pattern); err != nil {
				return nil, err
			}
		}
		s.chapters = append(s.chapters, part)
	}
	for i := range s.chapters {
		if s.chapters[i].Title != guides {
			continue
		}
		if err := s.add(&s.chapters[i], "docs/*.md"); err != nil { // what is in no other
			return nil, err
		}
	}
	for _, c := range s.chapters {
		s.order = append(s.order, c.Pages...)
	}
	return s, nil
}

// add adds the pages that are in no chapter yet.
func (s *site) add(c *chapter, pattern string) error {
	found, err := fs.Glob(s.repository, pattern)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("there is no page %s", pattern)
	}
	var added []*page
	for _, source := range found {
		if s.pages[source] != nil {
			continue
		}
		p, err := s.parse(source)
		if err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
		s.pages[source] = p
		added = append(added, p)
	}
	slices.SortStableFunc(added, func(a, b *page) int { return cmp.Compare(a.Title, b.Title) })
	c.Pages = append(c.Pages, added...)
	return nil
}

// comments tell the tests, and not readers, about the blocks that follow.
var comments = regexp.MustCompile(`(?ms)^<!--.*?-->$\n?`)

func (s *site) parse(source string) (*page, error) {
	markdown, err := fs.ReadFile(s.repository, source)
	if err != nil {
		return nil, err
	}
	p := &page{Source: source, Path: address(source), markdown: comments.ReplaceAll(markdown, nil)}
	p.tree = s.markdown.Parser().Parse(text.NewReader(p.markdown))
	for n := p.tree.FirstChild(); n != nil; n = n.NextSibling() {
		heading, ok := n.(*ast.Heading)
		if !ok {
			continue
		}
		title := plain(heading, p.markdown)
		switch heading.Level {
		case 1:
			p.Title = cmp.Or(p.Title, title)
		case 2:
			id, _ := heading.AttributeString("id")
			p.Sections = append(p.Sections, section{ID: string(id.([]byte)), Title: title})
		}
	}
	if p.Title == "" {
		return nil, errors.New("it has no title")
	}
	return p, nil
}

// address is where a document of the repository is in the site.
func address(source string) string {
	switch source {
	case "README.md":
		return "index.html"
	case "CONTRIBUTING.md":
		return "contributing.html"
	}
	return strings.TrimSuffix(strings.TrimPrefix(source, "docs/"), ".md") + ".html"
}

// plain is the text of a node, without markup.
func plain(n ast.Node, source []byte) string {
	var b strings.Builder
	_ = ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if t, ok := n.(*ast.Text); ok && entering {
			b.Write(t.Segment.Value(source))
		}
		return ast.WalkContinue, nil
	})
	return b.String()
}

// render makes the files of the site, by their paths in it.
func (s *site) render() (map[string][]byte, error) {
	files := map[string][]byte{}
	for i, p := range s.order {
		if err := s.relink(p); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Source, err)
		}
		var body bytes.Buffer
		if err := s.markdown.Renderer().Render(&body, p.markdown, p.tree); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Source, err)
		}
		v := view{page: p, chapters: s.chapters, Body: template.HTML(body.String())} //nolint:gosec // it is our own
		if i > 0 {
			v.Previous = s.order[i-1]
		}
		if i+1 < len(s.order) {
			v.Next = s.order[i+1]
		}
		var err error
		if files[p.Path], err = v.html(); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Source, err)
		}
	}
	for source, target := range s.sources {
		content, err := fs.ReadFile(s.repository, source)
		if err != nil {
			return nil, err
		}
		if strings.HasSuffix(target, ".html") {
			p := &page{Source: source, Path: target, Title: source}
			v := view{page: p, chapters: s.chapters, Body: template.HTML("<h1>" + template.HTMLEscapeString(source) + "</h1>\n<pre><code>" + template.HTMLEscapeString(string(content)) + "</code></pre>\n")} //nolint:gosec // it is escaped
			if content, err = v.html(); err != nil {
				return nil, fmt.Errorf("%s: %w", source, err)
			}
		}
		files[target] = content
	}
	style, err := assets.ReadFile(styleSheet)
	files[styleSheet] = style
	return files, err
}

// relink makes links to documents and other files of the repository lead to where
// they are in the site.
func (s *site) relink(p *page) error {
	return ast.Walk(p.tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		var err error
		switch n := n.(type) {
		case *ast.Link:
			n.Destination, err = s.target(p, n.Destination)
		case *ast.Image:
			n.Destination, err = s.target(p, n.Destination)
		}
		return ast.WalkContinue, err
	})
}

func (s *site) target(p *page, destination []byte) ([]byte, error) {
	u, err := url.Parse(string(destination))
	if err != nil {
		return nil, err
	}
	if u.Scheme != "" || u.Path == "" {
		return destination, nil
	}
	source := path.Join(path.Dir(p.Source), u.Path)
	if linked := s.pages[source]; linked != nil {
		u.Path = relative(p.Path, linked.Path)
		return []byte(u.String()), nil
	}
	info, err := fs.Stat(s.repository, source)
	if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	if info.IsDir() {
		return nil, fmt.Errorf("link to the directory %s: link a file in it", source)
	}
	place := "source/" + source + ".html"
	switch path.Ext(source) {
	case ".svg", ".png", ".json":
		place = strings.TrimPrefix(source, "docs/")
	}
	s.sources[source] = place
	u.Path = relative(p.Path, place)
	return []byte(u.String()), nil
}

// relative is the link from one file of the site to another.
func relative(from, to string) string {
	return strings.Repeat("../", strings.Count(from, "/")) + to
}

// view is a page with all around it, for the template.
type view struct {
	*page
	chapters       []chapter
	Body           template.HTML
	Previous, Next *page
}

func (v view) html() ([]byte, error) {
	var b bytes.Buffer
	err := layout.Execute(&b, v)
	return b.Bytes(), err
}

// Chapters are the navigation.
func (v view) Chapters() []chapter { return v.chapters }

// To is the link to another page.
func (v view) To(p *page) string { return relative(v.Path, p.Path) }

// Style is the link to the style sheet.
func (v view) Style() string { return relative(v.Path, styleSheet) }

// Home is the link to the first page.
func (v view) Home() string { return relative(v.Path, address("README.md")) }

// Current tells whether it is the page itself.
func (v view) Current(p *page) bool { return v.page == p }

// Open tells whether the chapter has the page itself.
func (v view) Open(c chapter) bool { return slices.Contains(c.Pages, v.page) }
