// Package reference makes the reference of the command, from the tree of commands
// itself: a page of Markdown and a manual page for each, which say the same. What
// the help of a command can't know, such as exit codes, is in facts.go.
package reference

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Page is what there is to say about one command.
type Page struct {
	// Name is that of its file, without an ending: "holdfast-policy-check".
	Name string
	// Command is what is called: "holdfast policy check".
	Command string
	Short   string
	// Usage is the line after which it is called.
	Usage string
	// Description and Examples are plain text.
	Description, Examples []string
	Flags, Global         []Flag
	// Parent and Children are other pages' commands; the root has no parent.
	Parent   string
	Children []Child
	// Own tells that exit codes, environment and files are not Holdfast's, but those
	// of the command that it stands for.
	Own bool
}

// Child is a command below another.
type Child struct{ Command, Short string }

// Flag is one flag, as it is written on a command line.
type Flag struct {
	Names   string // "-o, --output string"
	Meaning string
	Default string // empty where it is nothing
}

// Root tells whether it is the page of the command itself.
func (p Page) Root() bool { return p.Parent == "" }

// Pages are those of all commands that people are told about, the root first.
func Pages(root *cobra.Command) []Page {
	root.InitDefaultHelpCmd()
	var pages []Page
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden {
			return
		}
		pages = append(pages, page(c))
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	return pages
}

func page(c *cobra.Command) Page {
	c.InitDefaultHelpFlag()
	p := Page{
		Name:        fileName(c.CommandPath()),
		Command:     c.CommandPath(),
		Short:       c.Short,
		Usage:       c.UseLine(),
		Description: paragraphs(c.Long),
		Examples:    unindented(c.Example),
		Own:         c.DisableFlagParsing,
	}
	if c.HasParent() {
		p.Parent = c.Parent().CommandPath()
	}
	for _, sub := range c.Commands() {
		if !sub.Hidden {
			p.Children = append(p.Children, Child{sub.CommandPath(), sub.Short})
		}
	}
	if !p.Own {
		p.Flags, p.Global = flags(c.NonInheritedFlags()), flags(c.InheritedFlags())
	}
	return p
}

// fileName is the name of a command's page.
func fileName(command string) string { return strings.ReplaceAll(command, " ", "-") }

// paragraphs are those of a command's help, which is broken into lines for a
// terminal. One that lists exit codes is left out: there is a table of them.
func paragraphs(long string) []string {
	var all []string
	for p := range strings.SplitSeq(strings.TrimSpace(long), "\n\n") {
		if p != "" && !strings.HasPrefix(p, "Exit codes:") {
			all = append(all, p)
		}
	}
	return all
}

// unindented are the lines of a text that is indented as a whole.
func unindented(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.TrimPrefix(strings.TrimRight(line, "\n"), "  "))
	}
	return lines
}

func flags(set *pflag.FlagSet) []Flag {
	var all []Flag
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, meaning := pflag.UnquoteUsage(f)
		names := "--" + f.Name
		if f.Shorthand != "" {
			names = "-" + f.Shorthand + ", " + names
		}
		if value != "" {
			names += " " + value
		}
		flag := Flag{Names: names, Meaning: meaning}
		if !slices.Contains([]string{"", "0", "0s", "false", "[]"}, f.DefValue) {
			flag.Default = f.DefValue
		}
		all = append(all, flag)
	})
	return all
}
