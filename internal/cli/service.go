package cli

import (
	"cmp"
	"context"
	"errors"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// service is what changes owned hooks: the daemon where one listens, or where a socket
// was given, and else an arbiter in this process. Who names another directory for the
// state means that one, and no daemon's. The caller closes it.
func (a *app) service(ctx context.Context) (arbiter.Service, error) {
	if c, err := a.daemon(ctx); c != nil || err != nil {
		return c, err
	}
	return arbiter.Open(a.stateOptions())
}

// look is service to look at what is there: it makes no state where there is none. Who
// may not read the state still sees what the kernel shows.
func (a *app) look(ctx context.Context) (arbiter.Service, error) {
	if c, err := a.daemon(ctx); c != nil || err != nil {
		return c, err
	}
	state, err := arbiter.OpenReadOnly(a.stateOptions())
	if errors.Is(err, xdp.ErrPermission) {
		a.log.Warn("only root can read Holdfast's state, so names and owners are left out")
		return arbiter.Stateless(a.stateOptions()), nil
	}
	if err != nil {
		return nil, err
	}
	return state, nil
}

// daemon connects to the daemon, and returns nil where none is to be asked.
func (a *app) daemon(ctx context.Context) (arbiter.Service, error) {
	socket := cmp.Or(a.socket, a.env.Getenv("HOLDFAST_SOCKET"))
	if a.embedded || socket == "" && a.stateOptions().Dir != "" {
		return nil, nil
	}
	c, err := client.Open(ctx, client.Options{Socket: socket})
	switch {
	case err == nil:
		return c, nil
	case socket != "":
		if errors.Is(err, client.ErrNoDaemon) {
			err = noDaemon(socket, ", or do it without one, with --embedded and as root")
		}
		return nil, err
	default:
		return nil, nil // this process tries itself, and says why if it can't
	}
}
