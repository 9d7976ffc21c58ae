package features

import (
	"errors"
	"fmt"

	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// scratch is a pair of interfaces in a network namespace that nobody else can
// reach. Programs are attached at near; far is its peer. Both stay down: the
// kernel attaches to them just the same, and no packet ever moves.
type scratch struct {
	net       *netns.NS
	conn      *rtnl.Conn
	ns        *xdp.Namespace
	near, far rtnl.Device
}

const nearName, farName = "near", "far"

// newScratch makes a pair. It needs CAP_SYS_ADMIN. The caller closes it.
func newScratch() (*scratch, error) {
	s := &scratch{}
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *scratch) open() (err error) {
	if s.net, err = netns.New(); err != nil {
		return fmt.Errorf("make a place to try things in: %w", err)
	}
	if s.conn, err = rtnl.Dial(s.net.FD()); err != nil {
		return err
	}
	if err = s.conn.AddVeth(nearName, farName, -1); err != nil {
		return fmt.Errorf("make a veth pair to try things at: %w", err)
	}
	if s.near, err = s.conn.Device(nearName); err != nil {
		return err
	}
	if s.far, err = s.conn.Device(farName); err != nil {
		return err
	}
	s.ns, err = xdp.OpenNamespace(descriptorPath(s.net.FD()))
	return err
}

// close ends the interfaces before the namespace, which the kernel takes apart
// at its leisure.
func (s *scratch) close() error {
	var errs []error
	if s.near.Index != 0 {
		errs = append(errs, s.conn.Delete(s.near.Index))
	}
	if s.ns != nil {
		errs = append(errs, s.ns.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	if s.net != nil {
		errs = append(errs, s.net.Close())
	}
	return errors.Join(errs...)
}

func (s *scratch) hook(mode xdp.Mode) (*xdp.Hook, error) { return s.ns.Hook(nearName, mode) }

func descriptorPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
