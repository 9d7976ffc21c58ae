// Package exampletest runs the examples as their users do.
package exampletest

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/daemon"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
)

func TestMain(m *testing.M) { kerneltest.Main(m, kerneltest.Commands{}) }

// serve runs a daemon, and returns its socket.
func serve(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "holdfast.sock")
	ready := make(chan bool)
	d, err := daemon.Start(daemon.Config{
		Socket: socket, Dir: dir, State: arbiter.Options{Dir: kerneltest.BPFFS(t)}, Ready: func() { close(ready) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Serve(ctx) }()
	<-ready
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		d.Close()
	})
	return socket
}

// run starts an example in the namespace, and returns its lines.
func run(t *testing.T, ns *kerneltest.NetNS, socket string, command ...string) *kerneltest.Process {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "HOLDFAST_SOCKET="+socket)
	return ns.Start(t, cmd)
}

func next(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("it said no more (%v)", lines.Err())
	}
	return lines.Text()
}

// attached tells whether a program is at the near end.
func attached(t *testing.T, v *kerneltest.Veth) bool {
	t.Helper()
	return v.Near.Device(t, v.NearName).XDP != (rtnl.XDP{})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestTheSamplerCountsUntilItIsKilled(t *testing.T) {
	if kerneltest.InMachine() {
		t.Skip("there is no Go to build it with")
	}
	kerneltest.NoLeaks(t)
	binary := filepath.Join(t.TempDir(), "sampler")
	build := exec.Command("go", "build", "-o", binary, "github.com/holdfast-bpf/holdfast/examples/sampler")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	socket, v := serve(t), kerneltest.NewVeth(t)
	p := run(t, v.Near, socket, binary, v.NearName, kerneltest.ObjectFile(t, "count"))
	if got := next(t, p.Lines); got != "attached to "+v.NearName {
		t.Fatalf("it said %q", got)
	}
	v.Far.In(t, func() error {
		c, err := net.Dial("udp4", fmt.Sprintf("%s:7000", v.NearAddr))
		if err != nil {
			return err
		}
		defer c.Close()
		for range 5 {
			if _, err := c.Write([]byte("x")); err != nil {
				return nil // nobody listens, which the kernel may say
			}
		}
		return nil
	})
	for got := ""; got == "" || strings.HasPrefix(got, "0 "); {
		got = next(t, p.Lines)
		if !strings.HasSuffix(got, " packets") {
			t.Fatalf("it said %q", got)
		}
	}
	p.Kill()
	eventually(t, "its program to be gone", func() bool { return !attached(t, v) })
}

func TestThePythonExampleHoldsUntilItIsKilled(t *testing.T) {
	if kerneltest.InMachine() {
		t.Skip("there is no Python")
	}
	kerneltest.NoLeaks(t)
	socket, v := serve(t), kerneltest.NewVeth(t)
	p := run(t, v.Near, socket, "python3", "../python/hold.py", v.NearName, kerneltest.ObjectFile(t, "pass"), "snake")
	if got := next(t, p.Lines); got != "held snake" {
		t.Fatalf("it said %q", got)
	}
	if !attached(t, v) {
		t.Error("nothing is attached")
	}
	p.Kill()
	eventually(t, "its program to be gone", func() bool { return !attached(t, v) })
	// What is refused is said in the daemon's words.
	refused := exec.Command("python3", "../python/hold.py", "nowhere", kerneltest.ObjectFile(t, "pass"))
	refused.Env = append(os.Environ(), "HOLDFAST_SOCKET="+socket)
	if out, err := refused.CombinedOutput(); err == nil || !strings.Contains(string(out), "not found") {
		t.Errorf("at an interface that is not there: %v, %s", err, out)
	}
}
