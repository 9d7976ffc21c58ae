package peertest

import (
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// What xdp-loader -v says where it attaches one program without a dispatcher.
// Scripts look for the beginnings of these sentences.
const (
	noExtensions = " libxdp: Compatibility check for dispatcher program failed: "
	noBPFFS      = " libxdp: No bpffs found at "
	fallsBack    = " libxdp: Falling back to loading single prog without dispatcher\n"
	cannotFall   = " libxdp: Can't fall back to legacy load with 2 programs\n"
)

// Where the kernel takes no extensions, one program is attached all the same.
// The machine's own kernel may be one of these, and none of the others is.
func TestXDPLoaderFallsBackToOneProgram(t *testing.T) {
	extensions := haveFreplace(t)
	all := loaders(t)
	all[holdfast] = holdfastLoader{}
	for name, l := range all {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			s := newSite(t)
			pass := kerneltest.ObjectFile(t, "pass")
			check := func(t *testing.T, env string, files int, code int, says []string, leaves string) {
				t.Helper()
				args := []string{"load", s.NearName, "-v"}
				for range files {
					args = append(args, pass)
				}
				cmd := l.Command(s.bpffs, args...)
				if env != "" {
					cmd.Env = append(cmd.Env, env)
				}
				ended := s.Near.Run(t, cmd)
				if ended.Code != code {
					t.Errorf("exit code %d, want %d", ended.Code, code)
				}
				text := ended.Stderr
				for _, sentence := range says {
					_, after, found := strings.Cut(text, sentence)
					if !found {
						t.Errorf("%q is not said, or not in its turn:\n%s", sentence, ended.Stderr)
					}
					text = after
				}
				if len(says) == 0 && strings.Contains(text, "Falling back") {
					t.Errorf("it falls back:\n%s", text)
				}
				if got := s.state(t); got != leaves {
					t.Errorf("it leaves %s, want %s", got, leaves)
				}
				s.clear(t)
			}
			if extensions {
				check(t, "", 1, 0, nil, passOnly)
			} else {
				check(t, "", 1, 0, []string{noExtensions, fallsBack}, "native xdp_pass")
				check(t, "", 2, 161, []string{noExtensions, cannotFall}, nothing)
			}
			elsewhere := t.TempDir()
			check(t, "LIBXDP_BPFFS="+elsewhere, 1, 0, []string{noBPFFS + elsewhere, fallsBack}, "native xdp_pass")
			check(t, "LIBXDP_BPFFS="+elsewhere, 2, 161, []string{noBPFFS + elsewhere, cannotFall}, nothing)
		})
	}
}
