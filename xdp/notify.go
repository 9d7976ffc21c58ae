package xdp

import (
	"context"
	"errors"
	"maps"

	"github.com/holdfast-bpf/holdfast/internal/rtnl"
)

// Notify calls f with the interfaces of the namespace: first with all that there are,
// and then with each that the kernel says has changed or is gone, until ctx ends, which
// is its error. An error of f ends it, too.
//
// The kernel says so when a program is attached, replaced or detached by netlink. Of
// links it says nothing. Where more happens than a socket holds, what is there is read
// anew, and f is called with all of it again.
func (ns *Namespace) Notify(ctx context.Context, f func(i Interface, gone bool) error) error {
	l, err := rtnl.Listen(ns.ns.FD())
	if err != nil {
		return &Error{Op: "listen for changes", Hook: ns.Spec(), Err: ErrUnexpected, Detail: err.Error()}
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { _ = l.Interrupt() })()

	known := map[int]Interface{}
	tell := func(i Interface, gone bool) error {
		if gone {
			if _, ok := known[i.Index]; !ok {
				return nil
			}
			delete(known, i.Index)
		} else {
			known[i.Index] = i
		}
		return f(i, gone)
	}
	readAll := func() error {
		there, err := ns.Interfaces()
		if err != nil {
			return err
		}
		old := maps.Clone(known)
		for _, i := range there {
			delete(old, i.Index)
			if err := tell(i, false); err != nil {
				return err
			}
		}
		for _, i := range old {
			if err := tell(i, true); err != nil {
				return err
			}
		}
		return nil
	}
	// What changes from here on is told.
	err = readAll()
	for err == nil {
		var told []rtnl.Notification
		told, err = l.Receive()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch {
		case errors.Is(err, rtnl.ErrMissed):
			err = readAll()
			continue
		case err != nil:
			return &Error{Op: "listen for changes", Hook: ns.Spec(), Err: ErrUnexpected, Detail: err.Error()}
		}
		for _, n := range told {
			if err = tell(newInterface(n.Device), n.Gone); err != nil {
				break
			}
		}
	}
	return err
}
