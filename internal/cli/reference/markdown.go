package reference

import (
	"fmt"
	"regexp"
	"strings"
)

// Markdown is the page for docs/reference. known are the pages that there are.
func (p Page) Markdown(known []Page) string {
	var b strings.Builder
	fmt.Fprintf(&b, "<!-- Made from the command itself by go generate ./docs: do not edit. -->\n\n# %s\n\n%s.\n\n", p.Command, escape(p.Short))
	fmt.Fprintf(&b, "```\n%s\n```\n\n", p.Usage)
	for _, text := range p.Description {
		if strings.HasPrefix(text, "  ") {
			fmt.Fprintf(&b, "```\n%s\n```\n\n", strings.Join(unindented(text), "\n"))
			continue
		}
		fmt.Fprintf(&b, "%s\n\n", links(escape(text), known))
	}
	if len(p.Examples) > 0 {
		fmt.Fprintf(&b, "## Examples\n\n```\n%s\n```\n\n", strings.Join(p.Examples, "\n"))
	}
	if len(p.Children) > 0 {
		b.WriteString("## Commands\n\n| Command | |\n|---|---|\n")
		for _, c := range p.Children {
			fmt.Fprintf(&b, "| [%s](%s.md) | %s |\n", c.Command, fileName(c.Command), escape(c.Short))
		}
		b.WriteString("\n")
	}
	if len(p.Flags) > 0 {
		b.WriteString("## Flags\n\n| Flag | Meaning |\n|---|---|\n")
		for _, f := range p.Flags {
			fmt.Fprintf(&b, "| `%s` | %s |\n", f.Names, escape(f.meaning()))
		}
		b.WriteString("\n")
	}
	if p.Root() {
		facts(&b, "Exit codes", "Code", exitCodes)
		fmt.Fprintf(&b, "%s [Errors](../errors.md) says which error has which code, and what to do about each.\n\n", links(escape(runCodes), known))
		facts(&b, "Environment", "Variable", environment)
		facts(&b, "Files", "Path", files)
	}
	if !p.Root() {
		fmt.Fprintf(&b, "## See also\n\n[%s](%s.md)", p.Parent, fileName(p.Parent))
		if len(p.Global) > 0 {
			b.WriteString(" has the flags that all commands take, exit codes, environment and files")
		}
		b.WriteString(".\n")
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func facts(b *strings.Builder, title, column string, all []fact) {
	fmt.Fprintf(b, "## %s\n\n| %s | Meaning |\n|---|---|\n", title, column)
	for _, f := range all {
		fmt.Fprintf(b, "| `%s` | %s |\n", f.name, escape(f.meaning))
	}
	b.WriteString("\n")
}

// meaning is what the flag means, with its default.
func (f Flag) meaning() string {
	if f.Default == "" {
		return f.Meaning
	}
	return fmt.Sprintf("%s (default %s)", f.Meaning, f.Default)
}

// escape keeps plain text from being read as Markdown.
func escape(text string) string {
	return strings.NewReplacer(`\`, `\\`, "<", `\<`, "*", `\*`, "`", "\\`", "|", `\|`, "[", `\[`).Replace(text)
}

var words = regexp.MustCompile(`'holdfast(?:\s+[a-z-]+)*'|--[a-z][a-z-]*[a-z]`)

// links makes links of the commands that the text names in quotes, and code of those
// with arguments and of flags.
func links(text string, known []Page) string {
	return words.ReplaceAllStringFunc(text, func(name string) string {
		command := strings.Join(strings.Fields(strings.Trim(name, "'")), " ")
		for _, p := range known {
			if p.Command == command {
				return fmt.Sprintf("[%s](%s.md)", command, p.Name)
			}
		}
		return "`" + command + "`"
	})
}
