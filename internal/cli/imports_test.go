package cli

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/holdfast-bpf/holdfast"

// What must never creep into a package, and why. A package is named with all
// that it imports, so a new one between two others is noticed, too.
var unwanted = []struct {
	packages []string
	imports  []string
	why      string
}{
	{
		packages: []string{"xdp", "object", "chain/libxdp", "chain/live", "chain/fused", "arbiter", "features", "trace"},
		imports:  []string{"github.com/spf13/cobra", "github.com/spf13/pflag"},
		why:      "a library does not bring a command line along",
	},
	{
		packages: []string{"arbiter", "client", "daemon", "holdfasttest"},
		imports:  []string{"charm.land", "github.com/charmbracelet"},
		why:      "only the command has a screen",
	},
	{
		packages: []string{"xdp", "object", "chain/libxdp", "chain/live", "chain/fused", "arbiter", "features", "trace", "cmd/holdfast"},
		imports:  []string{"gonum.org", "codeberg.org/go-fonts", "git.sr.ht/~sbinet"},
		why:      "plots are for bench",
	},
	{
		packages: []string{"cmd/holdfast"},
		imports:  []string{"github.com/yuin/goldmark", module + "/docs"},
		why:      "the documentation is rendered where it is written",
	},
	{
		packages: []string{"xdp", "object", "chain/libxdp", "chain/live", "chain/fused", "arbiter", "features", "trace", "client", "varlink", "policy", "holdfasttest"},
		imports:  []string{"github.com/prometheus", "net/http", "crypto/tls"},
		why:      "metrics are for the daemon",
	},
	{
		packages: []string{"xdp", "object", "chain/libxdp", "chain/live", "chain/fused", "arbiter", "features", "trace", "holdfasttest", "cmd/holdfast"},
		imports: []string{
			"testing", "github.com/google/go-cmp", "pgregory.net/rapid", "github.com/rogpeppe/go-internal",
			module + "/internal/kerneltest", module + "/internal/testbed", module + "/internal/vm",
		},
		why: "tests and their fixtures are not for machines that run Holdfast",
	},
	{
		packages: []string{"xdp", "object", "chain/libxdp", "chain/live", "chain/fused", "arbiter", "features", "trace"},
		imports:  []string{module + "/internal/cli", module + "/cmd"},
		why:      "imports go down only",
	},
	{
		packages: []string{"xdp", "object"},
		imports:  []string{module + "/arbiter", module + "/internal/bpfprog"},
		why:      "who attaches one program needs neither state nor our own programs",
	},
	{
		packages: []string{"chain/libxdp", "internal/cli/xdploader"},
		imports:  []string{module + "/arbiter"},
		why:      "a shared hook has no state of Holdfast's own",
	},
	{
		packages: []string{"trace"},
		imports:  []string{module + "/arbiter", module + "/object", module + "/chain/live", module + "/chain/libxdp"},
		why:      "who is told the members of a chain need not know how chains are made",
	},
	{
		packages: []string{"object"},
		imports:  []string{module + "/xdp", "github.com/mdlayher"},
		why:      "an object knows nothing of interfaces",
	},
	{
		packages: []string{"xdp", "object", "chain/libxdp", "chain/live", "chain/fused", "arbiter", "features", "trace", "holdfasttest"},
		imports:  []string{"github.com/goccy/go-yaml", module + "/chain/declared"},
		why:      "who attaches reads no files that declare chains",
	},
	{
		packages: []string{"client"},
		imports:  []string{module + "/daemon", module + "/policy", "github.com/goccy/go-yaml"},
		why:      "a client asks, and does not decide",
	},
	{
		packages: []string{"varlink"},
		imports:  []string{module + "/xdp", module + "/arbiter", "github.com/cilium/ebpf"},
		why:      "the protocol knows nothing of what is said by it",
	},
	{
		packages: []string{"cmd/holdfast"},
		imports:  []string{"C", "runtime/cgo"},
		why:      "the command is one static binary",
	},
}

func TestNothingUnwantedIsImported(t *testing.T) {
	known := map[string]map[string]bool{}
	for _, c := range unwanted {
		for _, p := range c.packages {
			if known[p] == nil {
				known[p] = dependencies(t, module+"/"+p)
			}
			for dep := range known[p] {
				for _, i := range c.imports {
					if dep == i || strings.HasPrefix(dep, i+"/") {
						t.Errorf("%s comes with %s: %s", p, dep, c.why)
					}
				}
			}
		}
	}
}

// dependencies are all packages that are linked in with one.
func dependencies(t *testing.T, path string) map[string]bool {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", path)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -deps %s: %v: %s", path, err, errOut.String())
	}
	deps := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		deps[strings.TrimSpace(line)] = true
	}
	if !deps[path] || !deps["golang.org/x/sys/unix"] {
		t.Fatalf("go list -deps %s does not name what is surely in it: %v", path, deps)
	}
	return deps
}
