package chaintest

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
)

// TestDebate shows what the kernel's developers argued about in March 2020, as
// far as it is about chains that a link holds; packages xdp and clitest show the
// rest.
func TestDebate(t *testing.T) {
	t.Run("the link of an interface is found and updated, by as many as come, without a daemon", manyCome)
	t.Run("who wants an interface to itself has it, and takes over what is there only on request", aloneUntilItShares)
	t.Run("what netlink attached is named, and adopted only on request", adoptedOnRequest)
}

// manyCome has eight processes add a member at once, where there is nothing yet.
func manyCome(t *testing.T) {
	const many = 8
	for _, engine := range engines(t) {
		t.Run(string(engine), func(t *testing.T) {
			p := newPlace(t)
			var started []*kerneltest.Process
			var marks []byte
			for n := range many {
				r := p.request(engine, step{Op: owned.Add, Name: fmt.Sprint("m", n), Mark: byte(1 + n)})
				cmd := exec.Command("/proc/self/exe", r.encode())
				cmd.Env = append(os.Environ(), kerneltest.CommandEnv("transact"))
				started = append(started, kerneltest.Start(t, cmd))
				marks = append(marks, byte(1+n))
			}
			for n, c := range started {
				for c.Lines.Scan() {
				}
				if err := c.Wait(); err != nil {
					t.Errorf("the process %d of those that came at once: %v", n, err)
				}
			}
			got := p.met()
			slices.Sort(got)
			if !slices.Equal(got, marks) {
				t.Errorf("packets meet %v, want %v", got, marks)
			}
			if s := p.status(); len(s.Members) != many || s.Generation != many || s.Engine != engine && s.Engine != arbiter.Single {
				t.Errorf("the chain is %+v", s)
			}
			p.removeAll()
		})
	}
}
