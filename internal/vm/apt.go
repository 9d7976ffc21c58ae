package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// source is one entry of apt's sources: packages of some suites at a mirror.
type source struct {
	uris, suites, components []string
	// options are the entry's further fields in deb822 spelling, such as
	// "Signed-By: …", continuation lines included. They go with the mirror.
	options []string
}

// parseSourcesList reads apt's sources in the one-line format ("deb URI SUITE
// COMPONENT…"). Entries that are switched off or for source packages are
// left out.
func parseSourcesList(text string) ([]source, error) {
	var all []source
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || strings.TrimLeft(rest, " \t") == rest {
			continue
		}
		rest = strings.TrimSpace(rest)
		var s source
		if strings.HasPrefix(rest, "[") {
			options, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				return nil, fmt.Errorf("line %d: '[' without ']'", i+1)
			}
			rest = after
			for _, option := range strings.Fields(options) {
				key, value, ok := strings.Cut(option, "=")
				if field := oneLineOptions[strings.ToLower(key)]; ok && field != "" {
					s.options = append(s.options, field+": "+strings.ReplaceAll(value, ",", " "))
				}
			}
		}
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			return nil, fmt.Errorf("line %d: neither address nor suite after \"deb\"", i+1)
		}
		s.uris, s.suites, s.components = fields[:1], fields[1:2], fields[2:]
		all = append(all, s)
	}
	return all, nil
}

// oneLineOptions are the options that belong to the mirror, by their
// spelling in the one-line format.
var oneLineOptions = map[string]string{
	"signed-by":          "Signed-By",
	"trusted":            "Trusted",
	"check-valid-until":  "Check-Valid-Until",
	"check-date":         "Check-Date",
	"allow-insecure":     "Allow-Insecure",
	"allow-weak":         "Allow-Weak",
	"inrelease-path":     "",
	"by-hash":            "By-Hash",
	"valid-until-max":    "Valid-Until-Max",
	"valid-until-min":    "Valid-Until-Min",
	"date-max-future":    "Date-Max-Future",
	"allow-downgrade-to": "",
}

// parseSourcesDeb822 reads apt's sources in the deb822 format: stanzas of
// "Field: value" lines, continued by lines that begin with a space.
func parseSourcesDeb822(text string) ([]source, error) {
	var all []source
	var stanza []string // one element a field, continuation lines included
	flush := func() {
		if s, ok := sourceOf(stanza); ok {
			all = append(all, s)
		}
		stanza = nil
	}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, " \t\r")
		switch {
		case strings.HasPrefix(line, "#"):
		case line == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			if len(stanza) == 0 {
				return nil, fmt.Errorf("line %d: continues no field", i+1)
			}
			stanza[len(stanza)-1] += "\n" + line
		case !strings.Contains(line, ":"):
			return nil, fmt.Errorf("line %d: %q is not a field", i+1, line)
		default:
			stanza = append(stanza, line)
		}
	}
	flush()
	return all, nil
}

func sourceOf(stanza []string) (source, bool) {
	var s source
	binary, enabled := false, true
	for _, field := range stanza {
		key, value, _ := strings.Cut(field, ":")
		words := strings.Fields(value)
		switch strings.ToLower(key) {
		case "types":
			binary = slices.Contains(words, "deb")
		case "uris":
			s.uris = words
		case "suites":
			s.suites = words
		case "components":
			s.components = words
		case "enabled":
			enabled = len(words) == 0 || !slices.Contains([]string{"no", "false", "0", "off"}, strings.ToLower(words[0]))
		case "architectures", "languages", "targets", "pdiffs":
			// What to take from there is decided here.
		default:
			s.options = append(s.options, field)
		}
	}
	return s, binary && enabled && len(s.uris) > 0 && len(s.suites) > 0
}

// machineSources reads the machine's own apt sources below etc, usually
// /etc/apt.
func machineSources(etc string) ([]source, error) {
	files := []string{filepath.Join(etc, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(etc, "sources.list.d", pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	var all []source
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("apt's sources: %w", err)
		}
		parse := parseSourcesList
		if filepath.Ext(file) == ".sources" {
			parse = parseSourcesDeb822
		}
		sources, err := parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("apt's sources: %s: %w", file, err)
		}
		all = append(all, sources...)
	}
	return all, nil
}

// mirrors are where a machine gets Debian's packages from.
type mirrors struct {
	main     source
	security source // no address if the machine has none
}

// findMirrors picks Debian's mirrors among the sources of a machine that
// runs the named release. Other releases are at the same addresses.
func findMirrors(all []source, codename string) (mirrors, error) {
	releases := []string{codename, "stable", "oldstable", "testing", "unstable", "sid"}
	var m mirrors
	for _, s := range all {
		if !slices.Contains(s.components, "main") {
			continue
		}
		for _, suite := range s.suites {
			switch {
			case suite == "":
			case len(m.main.uris) == 0 && slices.Contains(releases, suite):
				m.main = s
			case len(m.security.uris) == 0 && slices.ContainsFunc(releases, func(r string) bool {
				return suite == r+"-security" || suite == r+"/updates"
			}):
				m.security = s
			}
		}
	}
	if len(m.main.uris) == 0 {
		return m, fmt.Errorf("apt's sources name no Debian mirror for %q: what the tests run comes from Debian's packages, so add a Debian mirror to the machine's apt sources", codename)
	}
	return m, nil
}

// stanza points the mirror's entry at another suite, for its packages only:
// no translations, no icons.
func (s source) stanza(suite string) string {
	lines := append([]string{
		"Types: deb",
		"URIs: " + strings.Join(s.uris, " "),
		"Suites: " + suite,
		"Components: main",
		"Architectures: amd64",
		"Targets: Packages",
	}, s.options...)
	return strings.Join(lines, "\n") + "\n"
}

// apt runs apt with a configuration of its own: other sources, other lists,
// no hooks. The machine's proxy settings stay in force, and nothing of the
// machine's apt is changed.
type apt struct {
	dir    string
	config string
}

// newApt makes an apt in dir for the packages of a suite at the machine's
// mirror, and of one at its security mirror if security is not empty and the
// machine has one.
func newApt(dir, suite, security string) (*apt, error) {
	codename, err := debianCodename("/etc/os-release")
	if err != nil {
		return nil, err
	}
	all, err := machineSources("/etc/apt")
	if err != nil {
		return nil, err
	}
	m, err := findMirrors(all, codename)
	if err != nil {
		return nil, err
	}
	stanzas := []string{m.main.stanza(suite)}
	if security != "" && len(m.security.uris) > 0 {
		stanzas = append(stanzas, m.security.stanza(security))
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	config := strings.NewReplacer("DIR", dir).Replace(`
Dir::State "DIR";
Dir::State::Lists "DIR/lists";
Dir::State::status "DIR/status";
Dir::Cache "DIR/cache";
Dir::Etc::SourceList "DIR/suites.sources";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
APT::Architecture "amd64";
APT::Sandbox::User "root";
APT::Get::List-Cleanup "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
`)
	a := &apt{dir: dir, config: filepath.Join(dir, "apt.conf")}
	for name, text := range map[string]string{
		"apt.conf":       config,
		"status":         "",
		"suites.sources": strings.Join(stanzas, "\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// sources is the file that says where packages come from, in the deb822 format.
func (a *apt) sources() string { return filepath.Join(a.dir, "suites.sources") }

func (a *apt) run(ctx context.Context, tool string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, tool, append([]string{"-c", a.config}, args...)...)
	cmd.Dir = a.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, all bytes.Buffer
	cmd.Stdout = &tee{&out, &all}
	cmd.Stderr = &all
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", tool, strings.Join(args, " "), err, bytes.TrimSpace(all.Bytes()))
	}
	return out.String(), nil
}

// unpack downloads packages and lays their files below root. It installs
// nothing.
func (a *apt) unpack(ctx context.Context, root string, packages ...string) error {
	dir, err := os.MkdirTemp(a.dir, "debs-")
	if err != nil {
		return err
	}
	download := *a
	download.dir = dir
	if _, err := download.run(ctx, "apt-get", append([]string{"download"}, packages...)...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, root).CombinedOutput(); err != nil {
			return fmt.Errorf("dpkg-deb -x %s: %w\n%s", deb, err, out)
		}
	}
	return nil
}

type tee struct{ a, b *bytes.Buffer }

func (t *tee) Write(p []byte) (int, error) {
	t.a.Write(p)
	return t.b.Write(p)
}

// show returns the fields of the version of a package that apt would take.
func (a *apt) show(ctx context.Context, pkg string) (map[string]string, error) {
	text, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", pkg)
	if err != nil {
		return nil, err
	}
	return parseControl(text), nil
}

// parseControl reads the first paragraph of a Debian control file.
func parseControl(text string) map[string]string {
	fields := map[string]string{}
	key := ""
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "" && len(fields) > 0:
			return fields
		case line == "":
		case line[0] == ' ' || line[0] == '\t':
			fields[key] += "\n" + strings.TrimSpace(line)
		default:
			name, value, _ := strings.Cut(line, ":")
			key = name
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields
}

// dependNames lists the packages in a Depends field, the first one of each
// set of alternatives, without versions.
func dependNames(depends string) []string {
	var names []string
	for _, dep := range strings.Split(depends, ",") {
		first, _, _ := strings.Cut(dep, "|")
		if words := strings.Fields(first); len(words) > 0 {
			name, _, _ := strings.Cut(words[0], ":")
			names = append(names, name)
		}
	}
	return names
}

func debianCodename(osRelease string) (string, error) {
	f, err := os.Open(osRelease)
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "VERSION_CODENAME="); ok {
			return strings.Trim(value, `"`), nil
		}
	}
	return "", lines.Err()
}
