package arbitertest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// openDefault is the command, in a mount namespace that is not process 1's: it opens
// the default state without what it takes to go there.
func openDefault([]string) int {
	err := func() error {
		if err := kerneltest.Drop(unix.CAP_SYS_PTRACE); err != nil {
			return err
		}
		a, err := arbiter.OpenReadOnly(arbiter.Options{})
		if err != nil {
			return fmt.Errorf("open for looking: %w", err)
		}
		if err := a.Close(); err != nil {
			return err
		}
		a, err = arbiter.Open(arbiter.Options{})
		if err == nil {
			return errors.Join(errors.New("it opened"), a.Close())
		}
		if !errors.Is(err, xdp.ErrPermission) || bpffs.Is(arbiter.DefaultDir) {
			return fmt.Errorf("a bpffs is mounted: %t, error: %w", bpffs.Is(arbiter.DefaultDir), err)
		}
		fmt.Print(err)
		return nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func TestNoStateIsMadeThatEndsWithTheCallersMounts(t *testing.T) {
	cmd := kerneltest.Command("open")
	cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{arbiter.DefaultDir, "process 1", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "--bpffs"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the error is %q, want %q in it", out, want)
		}
	}
	t.Logf("%s", out)
}
