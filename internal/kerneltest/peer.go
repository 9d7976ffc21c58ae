package kerneltest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/vm"
)

// Peer is libxdp's own tool, xdp-loader, in one of the versions that are in
// use. A package whose tests want one has a line "peer 1.5" in its
// testdata/guest.files.
type Peer struct{ *vm.Peer }

// Peers names the versions that there are, oldest first: "1.3" and so on.
func Peers() []string { return vm.Peers() }

// OpenPeer returns the version of that name.
func OpenPeer(t testing.TB, name string) Peer {
	t.Helper()
	p, err := vm.OpenPeer(name)
	if err != nil {
		t.Fatal(err)
	}
	return Peer{p}
}

// Command makes a command of xdp-loader that pins below bpffs, and gets no
// other setting of the environment. It has to be started in the namespace that
// it is for, as Run does.
func (p Peer) Command(bpffs string, args ...string) *exec.Cmd {
	cmd := p.Peer.Command(args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "LIBXDP_")
	}), "LIBXDP_BPFFS="+bpffs)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Ended is what a command left behind when it ended.
type Ended struct {
	Code           int
	Stdout, Stderr string
}

// Run runs a command in the namespace, to its end. An exit code is not a
// failure of the test, a signal is.
func (n *NetNS) Run(t testing.TB, cmd *exec.Cmd) Ended {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := n.Do(cmd.Run)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() < 0) {
		t.Fatalf("%s: %v\n%s", cmd, err, errOut.String())
	}
	return Ended{Code: cmd.ProcessState.ExitCode(), Stdout: out.String(), Stderr: errOut.String()}
}
