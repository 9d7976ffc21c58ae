package kerneltest

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func TestMain(m *testing.M) { Main(m, nil) }

func TestWhoIsNotRootIsToldSoAndLeavesNothing(t *testing.T) {
	// Its /run is the test's own, and has no lock yet.
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "need root") {
		t.Errorf("it said %q (%v)", out, err)
	}
	if _, err := os.Stat(lockDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it left a lock: %v", err)
	}
}
