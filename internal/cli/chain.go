package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// chains opens the bpffs with the pins of shared hooks, to look at chains. The
// caller closes it.
func (a *app) chains() (*libxdp.Chains, error) {
	dir := a.chainsDir()
	chains, err := libxdp.Open(libxdp.Options{BPFFS: dir, LockTimeout: a.lockTimeout, Log: a.log.Info})
	if errors.Is(err, fs.ErrPermission) {
		return nil, &xdp.Error{
			Op: "open", Hook: dir, Err: xdp.ErrPermission, Detail: "the pins of shared hooks' chains are there",
			Hint: "chains are for root",
		}
	}
	return chains, err
}

// chainsDir is where the bpffs with the pins of shared hooks is. `ip netns exec`
// hides the machine's behind a mount namespace of its own, which ends with the
// command; then it is the one of process 1, where the pins stay.
func (a *app) chainsDir() string {
	dir := cmp.Or(a.libxdpBPFFS, a.env.Getenv("LIBXDP_BPFFS"), libxdp.DefaultBPFFS)
	const hidden = "/proc/1/root" + libxdp.DefaultBPFFS
	if dir == libxdp.DefaultBPFFS && !bpffs.Is(dir) && bpffs.Is(hidden) {
		return hidden
	}
	return dir
}

// chainsToChange is chains for a change, which needs a bpffs. Where there is
// none, one is mounted if LIBXDP_BPFFS_AUTOMOUNT asks for it, as libxdp does.
func (a *app) chainsToChange(op string) (*libxdp.Chains, error) {
	dir := a.chainsDir()
	switch {
	case bpffs.Is(dir):
	case a.env.Getenv("LIBXDP_BPFFS_AUTOMOUNT") == "1":
		mount := func() error { return mountBPFFS(dir) }
		var err error
		if dir == libxdp.DefaultBPFFS {
			err = bpffs.InHostMounts(mount) // where the pins stay, as above
		} else {
			err = mount()
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", op, err)
		}
	default:
		return nil, &xdp.Error{
			Op: op, Hook: "to a shared hook", Err: xdp.ErrNotFound, Detail: "no bpffs is mounted at " + dir,
			Hint: fmt.Sprintf("mount one: mount -t bpf bpf %s; or set LIBXDP_BPFFS_AUTOMOUNT=1, or name another with --libxdp-bpffs", dir),
		}
	}
	return a.chains()
}

func mountBPFFS(dir string) error {
	root, err := bpffs.Mount(dir)
	if err != nil {
		return err
	}
	return root.Close()
}

// readChain reads what is at the hook. The chain is nil where that is not permitted:
// the daemon may do it, and else it is refused with more words. The caller closes the
// chains.
func (a *app) readChain(h *xdp.Hook) (*libxdp.Chains, *libxdp.Chain, error) {
	chains, err := a.chains()
	var found *libxdp.Chain
	if err == nil {
		if found, err = chains.Read(h); err != nil {
			chains.Close()
		}
	}
	switch {
	case errors.Is(err, xdp.ErrPermission):
		return new(libxdp.Chains), nil, nil
	case err != nil:
		return nil, nil, err
	}
	return chains, found, nil
}

// isChain tells whether what was read is a chain.
func isChain(c *libxdp.Chain) bool { return c != nil && c.Kind == libxdp.Dispatcher }

// attachMembers adds the programs of the objects to the chain. without says why
// there can be no chain here, and that the only object is to be attached by
// netlink instead.
func (a *app) attachMembers(c *cobra.Command, h *xdp.Hook, f *attachFlags, place libxdp.Settings, paths []string) (without, err error) {
	adds, err := f.additions(h, place, paths)
	if err != nil {
		return nil, err
	}
	a.raiseMemlock()
	chains, err := a.chainsToChange("attach")
	if errors.Is(err, xdp.ErrNotFound) {
		// To mount one would be in vain on some kernels.
		if no := a.withoutFreplace(c.Context(), h); no != nil {
			err = no
		}
	}
	var found *libxdp.Chain
	if err == nil {
		defer chains.Close()
		if f.adopt {
			if err := adopt(chains, h, adds, paths); err != nil {
				return nil, err
			}
		}
		found, err = chains.Add(c.Context(), h, adds...)
	}
	if f.object.verifierLog && err != nil {
		a.printVerifierLog(nil, err)
	}
	switch {
	case errors.Is(err, libxdp.ErrNoFreplace) && len(paths) == 1:
		return err, nil
	case err != nil:
		return nil, a.withRecord(h, f.object.explain(h, withAdoptHint(err)))
	}
	if len(found.Members) == len(adds) {
		a.tellGeneric(h, found.Mode)
	}
	return nil, a.printChain(h, found, "attached")
}

// withoutFreplace is the error that chains can't be had, if the kernel can't.
func (a *app) withoutFreplace(ctx context.Context, h *xdp.Hook) error {
	found, err := features.Kernel(ctx)
	if err != nil {
		return nil // the other error counts
	}
	if f := features.Find(found, features.Freplace); f != nil && f.Supported == features.No {
		return &xdp.Error{
			Op: "attach", Hook: h.String(), Err: libxdp.ErrNoFreplace, Detail: f.Reason,
			Hint: "attach one program alone, with --single",
		}
	}
	return nil
}

// additions are the objects' programs, in the order that they are given in
// where they are placed beside a member.
func (f *attachFlags) additions(h *xdp.Hook, place libxdp.Settings, paths []string) ([]libxdp.Addition, error) {
	var adds []libxdp.Addition
	after := place.After
	for _, path := range paths {
		o, err := f.object.open(path)
		if err != nil {
			return nil, err
		}
		options := f.object.options(h)
		p, err := o.Program(options.Program)
		if err != nil {
			return nil, f.object.explain(h, err)
		}
		adds = append(adds, libxdp.Addition{
			Object: o, Load: options,
			Priority: place.Priority, ProceedOn: place.ProceedOn, Before: place.Before, After: after,
		})
		if after != "" {
			after = p.Name
		}
	}
	return adds, nil
}

// adopt finds the object that the single program at the hook comes from.
func adopt(chains *libxdp.Chains, h *xdp.Hook, adds []libxdp.Addition, paths []string) error {
	found, err := chains.Read(h)
	if err != nil || found.Kind != libxdp.Single {
		return err // or there is nothing to adopt
	}
	single := found.Attachment
	for i := range adds {
		p, err := adds[i].Object.Program(adds[i].Load.Program)
		if err != nil {
			return err
		}
		if single.Program.Called(p.Name) {
			adds[i].Adopt = true
			return nil
		}
	}
	return &xdp.Error{
		Op: "adopt at", Hook: h.String(), Err: xdp.ErrConflict, Rival: single,
		Detail: "no program of " + strings.Join(paths, ", ") + " has that name",
		Hint:   "give the object that it comes from, too, or detach it first",
	}
}

// withAdoptHint names the flag that takes a single program into the chain.
func withAdoptHint(err error) error {
	var e *xdp.Error
	if errors.As(err, &e) && errors.Is(err, xdp.ErrConflict) && e.Rival != nil &&
		e.Rival.Held == xdp.HeldByNetlink && e.Rival.Program.Name != libxdp.DispatcherName {
		e.Hint = "detach it first, or take it into the chain by giving its object with --adopt"
	}
	return err
}

// memberTarget reads a member's name or program id.
func memberTarget(s string) libxdp.Target {
	if id, err := strconv.ParseUint(s, 10, 32); err == nil && id > 0 {
		return libxdp.Target{ID: uint32(id)}
	}
	return libxdp.Target{Name: s}
}

// onlyMember is the member that is meant where none is named, or says that one
// must be.
func onlyMember(h *xdp.Hook, found *libxdp.Chain, otherwise string) (libxdp.Member, error) {
	switch {
	case len(found.Members) == 1:
		return found.Members[0], nil
	case found.Problem != "":
		return libxdp.Member{}, usagef("%s has a chain whose members can't be told: %s; %s", h, found.Problem, otherwise)
	}
	var names []string
	for _, m := range found.Members {
		names = append(names, fmt.Sprintf("%s (%d)", m.Name, m.Program.ID))
	}
	return libxdp.Member{}, usagef("%s has a chain of %d members: %s; %s", h, len(found.Members), strings.Join(names, ", "), otherwise)
}

// noChain says that members were named where there are none.
func noChain(op string, h *xdp.Hook, found *libxdp.Chain) error {
	return &xdp.Error{
		Op: op, Hook: h.String(), Err: xdp.ErrNotAttached, Detail: "there is no chain, and so no member", Rival: found.Attachment,
		Hint: "`holdfast status` shows what there is",
	}
}
