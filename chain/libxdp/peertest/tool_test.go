package peertest

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// tool is one implementation of the protocol. What it refuses is an error.
type tool interface {
	// name is the tool's in testdata/interoperability.md.
	name() string
	// load adds b.n members in one call.
	load(t *testing.T, s *site, b batch) error
	// members reads the chain; an empty hook has none.
	members(t *testing.T, s *site) ([]member, error)
	// remove takes out the member that is the program with that id.
	remove(t *testing.T, s *site, id uint32) error
	removeAll(t *testing.T, s *site) error
}

// batch is members that are loaded in one call.
type batch struct {
	n        int
	priority int
	actions  string
	// object is the filter unless it says otherwise, which drops UDP packets
	// to its port and counts them.
	object string
}

func (b batch) objectName() string {
	if b.object == "" {
		return "filter"
	}
	return b.object
}

// tools are all that share hooks.
func tools(t *testing.T) []tool {
	t.Helper()
	all := []tool{library{}}
	for _, name := range kerneltest.Peers() {
		all = append(all, loaderTool{"libxdp " + name, kerneltest.OpenPeer(t, name)})
	}
	return all
}

// loader is anything that is called as xdp-loader is.
type loader interface {
	Command(bpffs string, args ...string) *exec.Cmd
}

// loaderTool is a tool with xdp-loader's command line.
type loaderTool struct {
	is string
	loader
}

// exitError is what a loader did not do.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d: %s", e.code, e.text) }

func (l loaderTool) name() string { return l.is }

func (l loaderTool) run(t *testing.T, s *site, args ...string) (string, error) {
	t.Helper()
	ended := s.Near.Run(t, l.Command(s.bpffs, args...))
	if ended.Code != 0 {
		return "", &exitError{ended.Code, ended.Stderr}
	}
	return ended.Stdout, nil
}

func (l loaderTool) load(t *testing.T, s *site, b batch) error {
	t.Helper()
	args := []string{"load", s.NearName, "--prio", strconv.Itoa(b.priority), "--actions", b.actions}
	file := kerneltest.ObjectFile(t, b.objectName())
	for range b.n {
		args = append(args, file)
	}
	_, err := l.run(t, s, args...)
	return err
}

func (l loaderTool) remove(t *testing.T, s *site, id uint32) error {
	t.Helper()
	_, err := l.run(t, s, "unload", s.NearName, "--id", fmt.Sprint(id))
	return err
}

func (l loaderTool) removeAll(t *testing.T, s *site) error {
	t.Helper()
	_, err := l.run(t, s, "unload", s.NearName, "--all")
	return err
}

func (l loaderTool) members(t *testing.T, s *site) ([]member, error) {
	t.Helper()
	out, err := l.run(t, s, "status", s.NearName)
	if err != nil {
		return nil, err
	}
	hooks, err := parseStatus(out)
	if err != nil {
		return nil, err
	}
	if len(hooks) != 1 || hooks[0].device != s.NearName {
		return nil, fmt.Errorf("status of %s is of %d interfaces:\n%s", s.NearName, len(hooks), out)
	}
	return hooks[0].members, nil
}

// statusHook is what xdp-loader's status says of one interface.
type statusHook struct {
	device  string
	program string // empty where none is attached
	mode    string
	id      uint32
	tag     string
	members []member
}

const statusHeader = `CURRENT XDP PROGRAM STATUS:

Interface        Prio  Program name      Mode     ID   Tag               Chain actions
--------------------------------------------------------------------------------------
`

// parseStatus reads the output of xdp-loader's status. It is exact: a line
// that is not as xdp-loader lays it out is an error.
func parseStatus(out string) ([]statusHook, error) {
	body, ok := strings.CutPrefix(out, statusHeader)
	if !ok {
		return nil, fmt.Errorf("status without its header:\n%s", out)
	}
	body, ok = strings.CutSuffix(body, "\n\n")
	if !ok {
		return nil, fmt.Errorf("status without an empty line at its end:\n%s", out)
	}
	var hooks []statusHook
	for line := range strings.SplitSeq(body, "\n") {
		words := strings.Fields(line)
		var again string
		switch {
		case strings.HasPrefix(line, " =>"):
			if len(words) != 6 || len(hooks) == 0 {
				return nil, fmt.Errorf("status line %q is no member", line)
			}
			priority, err := strconv.Atoi(words[1])
			if err != nil {
				return nil, fmt.Errorf("status line %q: %w", line, err)
			}
			id, err := strconv.ParseUint(words[3], 10, 32)
			if err != nil {
				return nil, fmt.Errorf("status line %q: %w", line, err)
			}
			hook := &hooks[len(hooks)-1]
			hook.members = append(hook.members, member{words[2], priority, words[5], uint32(id)})
			again = fmt.Sprintf("%-16s %-5d  %-16s %-8s %-4d %-17s %s", " =>", priority, words[2], "", id, words[4], words[5])
		case strings.HasSuffix(line, "<No XDP program loaded!>"):
			hooks = append(hooks, statusHook{device: words[0]})
			again = fmt.Sprintf("%-16s %-5s %s", words[0], "", "<No XDP program loaded!>")
		default:
			if len(words) != 5 {
				return nil, fmt.Errorf("status line %q is no program", line)
			}
			id, err := strconv.ParseUint(words[3], 10, 32)
			if err != nil {
				return nil, fmt.Errorf("status line %q: %w", line, err)
			}
			hooks = append(hooks, statusHook{device: words[0], program: words[1], mode: words[2], id: uint32(id), tag: words[4]})
			again = fmt.Sprintf("%-16s %-5s %-17s %-8s %-4d %-17s", words[0], "", words[1], words[2], id, words[4])
		}
		if line != again {
			return nil, fmt.Errorf("status line %q is not laid out as %q", line, again)
		}
	}
	return hooks, nil
}
