package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/policy"
)

// Places is where things are on the host.
type Places struct {
	// State is the directory of the state, and Pins the bpffs for the chains of
	// shared hooks.
	State, Pins string
	Socket      string
	// Policy is the directory of the policy.
	Policy string
}

// Look gathers what does not need the state to be open: that is the caller's to add.
// It loads programs, to find out what the kernel can do, and changes nothing else
// than its own limit on locked memory. The error is the context's.
func Look(ctx context.Context, p Places) (Host, error) {
	h := Host{
		Memlock: kernel.RemoveMemlock(), Missing: missing(),
		Lockdown:        read("/sys/kernel/security/lockdown"),
		UnprivilegedBPF: read("/proc/sys/kernel/unprivileged_bpf_disabled"),
		State:           stateFile(p.State),
		Pins:            p.Pins, PinsMounted: bpffs.Is(p.Pins),
		Socket: file(p.Socket), SocketDir: file(filepath.Dir(p.Socket)),
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		h.Release = unix.ByteSliceToString(uts.Release[:])
	}
	var err error
	if h.Features, err = features.Kernel(ctx); ctx.Err() != nil {
		return h, context.Cause(ctx)
	} else if err != nil {
		h.Features = []features.Feature{{Name: "bpf", About: "the kernel can be tried", Supported: features.Unknown, Reason: err.Error()}}
	}
	if h.Socket.Err == nil && h.Socket.Mode&fs.ModeSocket != 0 {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", p.Socket)
		if h.Connect = err; err == nil {
			conn.Close()
		}
	}
	_, h.Policy = policy.Load(p.Policy)
	h.PolicyFiles = policyFiles(p.Policy)
	return h, nil
}

func read(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}

func file(path string) File {
	info, err := os.Stat(path)
	if err != nil {
		return File{Path: path, Err: err}
	}
	return File{Path: path, Mode: info.Mode(), UID: int(info.Sys().(*syscall.Stat_t).Uid)}
}

// stateFile is the state's directory in the mount namespace of process 1, where that
// can be entered. Without a bpffs it is none.
func stateFile(dir string) File {
	f := File{Path: dir, Err: os.ErrNotExist}
	look := func() error {
		if f = file(dir); f.Err == nil && !bpffs.Is(dir) {
			f.Err = os.ErrNotExist
		}
		return nil
	}
	if err := bpffs.InHostMounts(look); err != nil {
		_ = look()
	}
	return f
}

func policyFiles(dir string) []File {
	var files []File
	more, _ := filepath.Glob(filepath.Join(dir, "policy.d", "*.yaml"))
	for _, path := range slices.Concat([]string{dir, filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "policy.d")}, more) {
		if f := file(path); f.Err == nil {
			files = append(files, f)
		}
	}
	return files
}

// missing are the capabilities that the caller lacks: those that the unit of the
// daemon has, which are all that is needed.
func missing() []string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return []string{fmt.Sprintf("what it takes to read its own capabilities (%s)", err)}
	}
	var lacks []string
	for _, c := range []struct {
		name   string
		number int
	}{
		{"CAP_DAC_READ_SEARCH", unix.CAP_DAC_READ_SEARCH},
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN},
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN},
		{"CAP_SYS_CHROOT", unix.CAP_SYS_CHROOT},
		{"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE},
	} {
		if data[c.number/32].Effective&(1<<(c.number%32)) == 0 {
			lacks = append(lacks, c.name)
		}
	}
	return lacks
}
