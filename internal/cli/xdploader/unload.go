package xdploader

import (
	"context"
	"errors"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// unload is `xdp-loader unload`.
func (l *loader) unload(r request) int {
	switch {
	case !r.all && r.id == 0:
		l.warn("Need prog ID or --all")
		return exitFailed
	case r.iface == "":
		l.warn("Must specify ifname")
		return exitFailed
	}
	ns, h, err := l.hook(r.iface, xdp.Auto)
	if err != nil {
		return exitFailed
	}
	defer ns.Close()
	chains, err := l.chains()
	if err == nil {
		defer chains.Close()
		err = l.detach(chains, h, r)
	}
	switch {
	case errors.Is(err, errNothing):
		l.warn("No XDP program loaded on %s", r.iface)
		return exitFailed
	case errors.Is(err, libxdp.ErrNoMember):
		l.warn("Program with ID %d not loaded on %s", r.id, r.iface)
		return exitFailed
	case err != nil:
		l.warn("Unable to detach XDP program: %s", words(errno(err)))
		l.why(err)
		return exitFailed
	}
	return exitDone
}

var errNothing = errors.New("no program is attached")

// detach detaches what the request names, from the card too.
func (l *loader) detach(chains *libxdp.Chains, h *xdp.Hook, r request) error {
	found, err := chains.Read(h)
	if err != nil {
		return err
	}
	card, err := h.Namespace().HookAt(h.Index(), xdp.Offload)
	if err != nil {
		return err
	}
	onCard, err := chains.Read(card)
	if err != nil {
		return err
	}
	if found.Kind == libxdp.Empty && onCard.Kind == libxdp.Empty {
		return errNothing
	}
	ctx := context.Background()
	if !r.all {
		l.debug("Detaching XDP program with ID %d from %s", r.id, r.iface)
		switch {
		case isAt(found, r.id):
			return chains.RemoveAll(ctx, h, xdp.ExpectID(r.id))
		case isAt(onCard, r.id):
			return chains.RemoveAll(ctx, card, xdp.ExpectID(r.id))
		}
		if found.Kind != libxdp.Dispatcher {
			return libxdp.ErrNoMember
		}
		_, err := chains.Remove(ctx, h, libxdp.Target{ID: r.id})
		return err
	}
	if found.Attachment != nil {
		err = chains.RemoveAll(ctx, h, xdp.ExpectID(found.Attachment.Program.ID))
	}
	if onCard.Attachment != nil {
		err = errors.Join(err, chains.RemoveAll(ctx, card, xdp.ExpectID(onCard.Attachment.Program.ID)))
	}
	return err
}

// isAt tells whether the program is at the hook alone, or is a dispatcher whose
// members can't be told, which is to libxdp the same.
func isAt(c *libxdp.Chain, id uint32) bool {
	return c.Attachment != nil && len(c.Members) == 0 && c.Attachment.Program.ID == id
}
