// Command write writes the reference of the command: pages of Markdown for docs, and
// manual pages.
//
//	write -markdown docs/reference
//	write -man bin/man -version v1.2.0
//
// Pages of commands that there are no more are removed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/holdfast-bpf/holdfast/internal/cli"
	"github.com/holdfast-bpf/holdfast/internal/cli/reference"
)

func main() {
	markdown := flag.String("markdown", "", "directory for the pages of Markdown")
	man := flag.String("man", "", "directory for the manual pages")
	version := flag.String("version", "devel", "version that the manual pages name")
	flag.Parse()
	if err := write(*markdown, *man, *version); err != nil {
		fmt.Fprintln(os.Stderr, "write:", err)
		os.Exit(1)
	}
}

func write(markdown, man, version string) error {
	pages := reference.Pages(cli.New(cli.Env{Stdout: io.Discard, Stderr: io.Discard, Getenv: func(string) string { return "" }}))
	switch {
	case markdown != "" && man == "":
		return fill(markdown, ".md", pages, func(p reference.Page) string { return p.Markdown(pages) })
	case man != "" && markdown == "":
		return fill(man, ".1", pages, func(p reference.Page) string { return p.Man(version) })
	}
	return errors.New("give either -markdown or -man")
}

// fill makes the directory hold the pages, and no others.
func fill(dir, ending string, pages []reference.Page, text func(reference.Page) string) error {
	old, err := filepath.Glob(filepath.Join(dir, "holdfast*"+ending))
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, p := range pages {
		if err := os.WriteFile(filepath.Join(dir, p.Name+ending), []byte(text(p)), 0o644); err != nil {
			return err
		}
	}
	return nil
}
