package reference

import (
	"fmt"
	"strings"
)

// Man is the manual page, in the macros of man(7). version is that of the command.
func (p Page) Man(version string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 \"\" %s Holdfast\n", strings.ToUpper(p.Name), argument("holdfast "+version))
	b.WriteString(".nh\n.ad l\n") // words of a command line are not broken
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", roff(p.Name), roff(p.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", roff(p.Usage))
	if len(p.Description) > 0 {
		b.WriteString(".SH DESCRIPTION\n")
		for _, text := range p.Description {
			if strings.HasPrefix(text, "  ") {
				literal(&b, unindented(text))
				continue
			}
			fmt.Fprintf(&b, ".PP\n%s\n", roff(text))
		}
	}
	if len(p.Children) > 0 {
		b.WriteString(".SH COMMANDS\n")
		for _, c := range p.Children {
			item(&b, c.Command, c.Short)
		}
	}
	manFlags(&b, "OPTIONS", p.Flags)
	manFlags(&b, "OPTIONS OF ALL COMMANDS", p.Global)
	if len(p.Examples) > 0 {
		b.WriteString(".SH EXAMPLES\n")
		literal(&b, p.Examples)
	}
	if !p.Own {
		manFacts(&b, "EXIT STATUS", exitCodes)
		fmt.Fprintf(&b, ".PP\n%s\n", roff(runCodes))
		manFacts(&b, "ENVIRONMENT", environment)
		manFacts(&b, "FILES", files)
	}
	if see := p.seeAlso(); len(see) > 0 {
		fmt.Fprintf(&b, ".SH SEE ALSO\n%s\n", strings.Join(see, ",\n"))
	}
	return b.String()
}

func (p Page) seeAlso() []string {
	var names []string
	if p.Parent != "" {
		names = append(names, p.Parent)
	}
	for _, c := range p.Children {
		names = append(names, c.Command)
	}
	for i, name := range names {
		names[i] = fmt.Sprintf("\\fB%s\\fP(1)", roff(fileName(name)))
	}
	return names
}

func manFlags(b *strings.Builder, title string, all []Flag) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	for _, f := range all {
		item(b, f.Names, f.meaning())
	}
}

func manFacts(b *strings.Builder, title string, all []fact) {
	fmt.Fprintf(b, ".SH %s\n", title)
	for _, f := range all {
		item(b, f.name, f.meaning)
	}
}

func item(b *strings.Builder, name, meaning string) {
	fmt.Fprintf(b, ".TP\n.B %s\n%s\n", roff(name), roff(meaning))
}

func literal(b *strings.Builder, lines []string) {
	b.WriteString(".PP\n.nf\n.RS\n")
	for _, line := range lines {
		fmt.Fprintln(b, roff(line))
	}
	b.WriteString(".RE\n.fi\n")
}

// roff escapes plain text: backslashes, hyphens that are to be copied as such, and
// lines that would be requests.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}

// argument is one argument of a macro.
func argument(text string) string { return `"` + strings.ReplaceAll(roff(text), `"`, `\(dq`) + `"` }
