package peertest

import (
	"bytes"
	"fmt"
	"os/exec"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// library is package chain/libxdp as one of the tools.
type library struct{}

func (library) name() string { return "Holdfast" }

// at opens what the library works on.
func (library) at(t *testing.T, s *site) (*libxdp.Chains, *xdp.Hook) {
	t.Helper()
	chains, err := libxdp.Open(libxdp.Options{BPFFS: s.bpffs, Log: func(msg string, args ...any) {
		t.Log(append([]any{msg}, args...)...)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { chains.Close() })
	s.opened = append(s.opened, chains)
	ns, err := xdp.OpenNamespace(s.Near.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	hook, err := ns.Hook(s.NearName, xdp.Native)
	if err != nil {
		t.Fatal(err)
	}
	return chains, hook
}

func (l library) load(t *testing.T, s *site, b batch) error {
	t.Helper()
	chains, hook := l.at(t, s)
	actions, err := chain.ParseActions(b.actions)
	if err != nil {
		t.Fatal(err)
	}
	priority := uint32(b.priority)
	var adds []libxdp.Addition
	for range b.n {
		o, err := object.Read(b.objectName()+".o", bytes.NewReader(bpfprog.ELF(b.objectName())))
		if err != nil {
			t.Fatal(err)
		}
		adds = append(adds, libxdp.Addition{Object: o, Priority: &priority, ProceedOn: &actions})
	}
	_, err = chains.Add(t.Context(), hook, adds...)
	return err
}

func (l library) members(t *testing.T, s *site) ([]member, error) {
	t.Helper()
	chains, hook := l.at(t, s)
	c, err := chains.Read(hook)
	if err != nil {
		return nil, err
	}
	if c.Problem != "" {
		return nil, fmt.Errorf("the chain has a problem: %s", c.Problem)
	}
	var members []member
	for _, m := range c.Members {
		members = append(members, member{m.Name, int(m.Priority), m.ProceedOn.String(), m.Program.ID})
	}
	return members, nil
}

func (l library) remove(t *testing.T, s *site, id uint32) error {
	t.Helper()
	chains, hook := l.at(t, s)
	_, err := chains.Remove(t.Context(), hook, libxdp.Target{ID: id})
	return err
}

func (l library) removeAll(t *testing.T, s *site) error {
	t.Helper()
	chains, hook := l.at(t, s)
	return chains.RemoveAll(t.Context(), hook, xdp.Any)
}

// holdfastLoader is the command when it is called by the name xdp-loader.
type holdfastLoader struct{}

func (holdfastLoader) Command(bpffs string, args ...string) *exec.Cmd {
	cmd := kerneltest.Command("holdfast", args...)
	cmd.Args[0] = "/usr/sbin/xdp-loader"
	cmd.Env = append(cmd.Env, "LIBXDP_BPFFS="+bpffs)
	return cmd
}
