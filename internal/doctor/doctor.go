// Package doctor says what is wrong on a host, and how to mend it. [Look] gathers
// what is so, and [Host.Checks] decides what that means; the latter is pure.
package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Result is what a check found.
type Result string

const (
	// OK: nothing is wrong.
	OK Result = "ok"
	// Note: something to know, with which Holdfast works.
	Note Result = "note"
	// Problem: something does not work, or is not safe.
	Problem Result = "problem"
)

// Check is one thing that was looked at.
type Check struct {
	// Name is fixed: scripts may rely on it. There can be several of one name.
	Name   string `json:"name"`
	Result Result `json:"result"`
	// What was found, and how to mend it, each in a sentence; Mend is empty where
	// there is nothing to do, or nothing to be done.
	What string `json:"what"`
	Mend string `json:"mend,omitempty"`
}

// Wrong tells whether any of the checks found a problem.
func Wrong(checks []Check) bool {
	return slices.ContainsFunc(checks, func(c Check) bool { return c.Result == Problem })
}

// File is what is to know of a file.
type File struct {
	Path string
	Mode fs.FileMode
	UID  int
	// Err is why it can't be looked at, os.ErrNotExist where it is not there.
	Err error
}

// Host is what was found on a host.
type Host struct {
	// Release is the kernel's, as in uname.
	Release  string
	Features []features.Feature
	// Lockdown and UnprivilegedBPF are /sys/kernel/security/lockdown and
	// kernel.unprivileged_bpf_disabled, empty where there is none.
	Lockdown, UnprivilegedBPF string
	// Memlock is why the limit on locked memory can't be raised, where it counts.
	Memlock error
	// Missing are the capabilities that the caller lacks.
	Missing []string

	// StateErr is why the state can't be opened, and State its directory.
	StateErr error
	State    File
	// Pins is the bpffs for the chains of shared hooks, and PinsMounted whether one
	// is mounted there.
	Pins        string
	PinsMounted bool

	// Socket is the daemon's and SocketDir where it lies; Connect is why nobody
	// answers there. Named tells that the caller said where the socket is.
	Socket, SocketDir File
	Connect           error
	Named             bool

	// Policy is what is wrong with the policy; PolicyFiles are the files of it.
	Policy      error
	PolicyFiles []File

	// Foreign are the attachments that Holdfast did not make, Stale and Left what is
	// left of those that it did, and AttachedErr why that can't be told.
	Foreign     []arbiter.Status
	Stale       []arbiter.Stale
	Left        []libxdp.Cleaned
	AttachedErr error
}

// Checks are all that was checked, in a fixed order.
func (h Host) Checks() []Check {
	var all []Check
	for _, check := range []struct {
		name string
		find func(Host) []Check
		well string
	}{
		{"capabilities", Host.capabilities, "the caller has all capabilities that it takes"},
		{"kernel", Host.kernel, "the kernel has what owned hooks need"},
		{"engines", Host.engines, "members of a chain can be exchanged while it runs"},
		{"lockdown", Host.lockdown, "the kernel is not locked down"},
		{"memlock", Host.memlock, "programs may take the memory that they need"},
		{"unprivileged-bpf", Host.unprivilegedBPF, "programs are loaded by the privileged only"},
		{"state", Host.state, "Holdfast's state can be used"},
		{"shared-hooks", Host.sharedHooks, "a bpffs is mounted for the chains of shared hooks"},
		{"socket", Host.socket, "the daemon's socket can be reached by all"},
		{"policy", Host.policy, "the policy can be read"},
		{"foreign", Host.foreign, "all programs at interfaces are Holdfast's"},
		{"stale", Host.stale, "nothing is left of what has ended"},
	} {
		found := check.find(h)
		if len(found) == 0 {
			found = []Check{{Result: OK, What: check.well}}
		}
		for _, c := range found {
			c.Name = check.name
			all = append(all, c)
		}
	}
	return all
}

func problem(mend, format string, args ...any) []Check {
	return []Check{{Result: Problem, What: fmt.Sprintf(format, args...), Mend: mend}}
}

func note(mend, format string, args ...any) []Check {
	return []Check{{Result: Note, What: fmt.Sprintf(format, args...), Mend: mend}}
}

func (h Host) capabilities() []Check {
	if len(h.Missing) == 0 {
		return nil
	}
	return problem("run it as root", "the caller lacks %s", strings.Join(h.Missing, ", "))
}

// needed are the features without which nothing can be owned.
var needed = []string{"bpf", "bpffs", "link", "link-update"}

func (h Host) kernel() []Check {
	var major, minor int
	if _, err := fmt.Sscanf(h.Release, "%d.%d", &major, &minor); err == nil && (major < 5 || major == 5 && minor < 10) {
		return problem("upgrade to Linux 5.10 or later", "Linux %s is too old", h.Release)
	}
	var found []Check
	for _, name := range needed {
		f := features.Find(h.Features, name)
		if f == nil || f.Supported == features.Yes {
			continue
		}
		mend := "see `holdfast features`"
		if f.Supported == features.No && f.Since != "" {
			mend = "take a kernel of Linux " + f.Since + " or later that has it"
		}
		result := problem
		if f.Supported == features.Unknown {
			result = note
		}
		found = append(found, result(mend, "%s (%s): %s, %s", f.Name, f.About, f.Supported, cmp.Or(f.Reason, "for a reason that is not known"))...)
	}
	return found
}

// engines: chains are live where the kernel replaces functions, and fused where it
// only has types of its own.
func (h Host) engines() []Check {
	live, btf := features.Find(h.Features, "freplace"), features.Find(h.Features, "btf")
	if live == nil || btf == nil {
		return nil
	}
	switch {
	case btf.Supported == features.No:
		return problem("take a kernel that is built with CONFIG_DEBUG_INFO_BTF", "a hook has room for one member only: the kernel does not describe its own types (%s)", cmp.Or(btf.Reason, "no BTF"))
	case live.Supported == features.No:
		return note("", "each change builds a chain anew, because no function of a running program can be replaced: %s", cmp.Or(live.Reason, "the kernel has no freplace"))
	case btf.Supported == features.Unknown, live.Supported == features.Unknown:
		return note("see `holdfast features`", "how chains can run is not known: %s", cmp.Or(live.Reason, btf.Reason, "no reason is known"))
	}
	return nil
}

func (h Host) lockdown() []Check {
	if strings.Contains(h.Lockdown, "[confidentiality]") {
		return note("boot with lockdown=integrity where they are needed", "the kernel is locked down (confidentiality): programs that read its memory are refused")
	}
	return nil
}

func (h Host) memlock() []Check {
	if h.Memlock == nil {
		return nil
	}
	return problem("run it as root, or with LimitMEMLOCK=infinity", "before Linux 5.11 programs count as locked memory, and the limit can't be raised: %s", h.Memlock)
}

func (h Host) unprivilegedBPF() []Check {
	if h.UnprivilegedBPF != "0" {
		return nil
	}
	return note("sysctl -w kernel.unprivileged_bpf_disabled=1", "users without privilege may load programs, which has let some of them read the kernel's memory")
}

func (h Host) state() []Check {
	switch {
	case errors.Is(h.StateErr, xdp.ErrPermission):
		return note("run it as root", "the state can't be read: %s", h.StateErr)
	case h.StateErr != nil:
		return problem("see that nothing else is mounted or made at "+h.State.Path, "the state can't be opened: %s", h.StateErr)
	case errors.Is(h.State.Err, os.ErrNotExist):
		return note("", "there is no state yet at %s; the first change makes it", h.State.Path)
	case errors.Is(h.State.Err, os.ErrPermission):
		return note("run it as root", "the state can't be seen: %s", h.State.Err)
	case h.State.Err != nil:
		return problem("", "the state can't be seen: %s", h.State.Err)
	case h.State.UID != 0 || h.State.Mode.Perm()&0o077 != 0:
		return problem(fmt.Sprintf("chown root %[1]s && chmod 0700 %[1]s", h.State.Path),
			"the state at %s is open to others than root (uid %d, mode %04o): they could open its pins", h.State.Path, h.State.UID, h.State.Mode.Perm())
	}
	return nil
}

func (h Host) sharedHooks() []Check {
	if h.PinsMounted {
		return nil
	}
	return note("mount -t bpf bpf "+h.Pins, "no bpffs can be seen at %s, without which shared hooks have no chains", h.Pins)
}

func (h Host) socket() []Check {
	const start = "systemctl restart holdfast.socket, or start `holdfast daemon`"
	s, dir := h.Socket, h.SocketDir
	switch {
	case errors.Is(s.Err, os.ErrNotExist) && !h.Named:
		return note("systemctl enable --now holdfast.socket, or start `holdfast daemon`", "there is no socket at %s: applications without privilege can't attach", s.Path)
	case errors.Is(s.Err, os.ErrNotExist):
		return problem(start, "there is no socket at %s", s.Path)
	case s.Err != nil:
		return problem(fmt.Sprintf("chmod 0755 %s", dir.Path), "the socket can't be looked at: %s", s.Err)
	case s.Mode&fs.ModeSocket == 0:
		return problem("remove it, and "+start, "%s is no socket", s.Path)
	case errors.Is(h.Connect, unix.ECONNREFUSED):
		return problem(start, "nobody listens at %s", s.Path)
	case h.Connect != nil:
		return problem(fmt.Sprintf("chmod 0666 %s", s.Path), "the socket can't be reached: %s", h.Connect)
	}
	var found []Check
	if s.UID != 0 {
		found = problem(start, "the socket at %s is that of uid %d, who could answer as the daemon", s.Path, s.UID)
	} else if s.Mode.Perm()&0o666 != 0o666 {
		found = note(fmt.Sprintf("chmod 0666 %s, unless that is meant", s.Path), "not everybody may ask at %s (mode %04o)", s.Path, s.Mode.Perm())
	}
	switch {
	case dir.Err != nil:
	case dir.UID != 0 || dir.Mode.Perm()&0o022 != 0 && dir.Mode&fs.ModeSticky == 0:
		found = append(found, problem(fmt.Sprintf("chown root %[1]s && chmod 0755 %[1]s", dir.Path),
			"others than root may put another socket into %s (uid %d, mode %04o)", dir.Path, dir.UID, dir.Mode.Perm())...)
	case dir.Mode.Perm()&0o001 == 0:
		found = append(found, problem(fmt.Sprintf("chmod 0755 %s", dir.Path), "only root reaches what is in %s (mode %04o)", dir.Path, dir.Mode.Perm())...)
	}
	return found
}

func (h Host) policy() []Check {
	var found []Check
	for _, f := range h.PolicyFiles {
		if f.Err == nil && (f.UID != 0 || f.Mode.Perm()&0o022 != 0) {
			found = append(found, problem(fmt.Sprintf("chown root %[1]s && chmod go-w %[1]s", f.Path),
				"others than root may change the policy %s (uid %d, mode %04o)", f.Path, f.UID, f.Mode.Perm())...)
		}
	}
	switch {
	case errors.Is(h.Policy, os.ErrPermission):
		return append(found, note("run it as root", "the policy can't be read: %s", h.Policy)...)
	case h.Policy != nil:
		return append(found, problem("mend the file; until then the policy before it is in force", "the policy can't be understood: %s", h.Policy)...)
	}
	return found
}

func (h Host) foreign() []Check {
	if h.AttachedErr != nil {
		return note("run it as root", "what is attached can't be told: %s", h.AttachedErr)
	}
	var found []Check
	for _, s := range h.Foreign {
		where := s.Interface
		if s.Namespace != "" {
			where += " in " + s.Namespace
		}
		mend := fmt.Sprintf("`holdfast adopt %s OBJ` would own it", s.Interface)
		if s.Held == xdp.HeldByLink {
			mend = "ask its holders to detach it, where it is in the way"
		}
		found = append(found, note(mend, "program %d %q at %s is not Holdfast's", s.Program.ID, s.Program.Name, where)...)
	}
	return h.orUnknown(found, "whose the programs at interfaces are")
}

// orUnknown is what was found, and that it is not known where nothing was found by
// who can't see all.
func (h Host) orUnknown(found []Check, what string) []Check {
	if len(found) == 0 && len(h.Missing) > 0 {
		return note("run it as root", "%s can't be told without capabilities", what)
	}
	return found
}

func (h Host) stale() []Check {
	if h.AttachedErr != nil {
		return note("run it as root", "what is left of what has ended can't be told: %s", h.AttachedErr)
	}
	var found []Check
	for _, s := range h.Stale {
		found = append(found, problem("holdfast gc", "%s of %s (%s): %s", cmp.Or(s.Name, "an attachment"), cmp.Or(s.Interface, "an unknown interface"), s.Entry, s.Why)...)
	}
	for _, p := range h.Left {
		if p.Removed { // or would be
			found = append(found, problem("holdfast gc", "pins at %s: %s", p.Path, p.Reason)...)
		}
	}
	return h.orUnknown(found, "what is left of what has ended")
}
