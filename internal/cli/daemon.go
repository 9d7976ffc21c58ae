package cli

import (
	"cmp"
	"context"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/daemon"
	"github.com/holdfast-bpf/holdfast/policy"
)

func (a *app) daemonCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "daemon",
		Short: "Serve applications without privilege, as the policy allows",
		Long: `Serve applications that attach programs without a privilege of their own. They
ask over a socket, what the kernel says of them is recorded with what they attach,
and the administrator's policy decides; see 'holdfast policy'. What an application
holds ends with it.

What is declared in attachments.d/*.yaml, in the form of 'holdfast apply', is
attached as soon as its interface is there, and again where it has come to be
otherwise.

The daemon keeps nothing that the kernel does not know: to stop it, or to kill it,
detaches nothing. SIGHUP has it read the policy and what is declared anew; a policy
that can't be read leaves the one in force as it is.`,
		Example: `  holdfast daemon
  holdfast daemon --socket /tmp/holdfast.sock --config ./etc`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if a.embedded {
				return usagef("--embedded is to do without a daemon, and this is one")
			}
			socket := cmp.Or(a.socket, a.env.Getenv("HOLDFAST_SOCKET"), client.DefaultSocket)
			a.raiseMemlock()
			d, err := daemon.Start(daemon.Config{
				Socket: socket, Dir: dir, State: a.stateOptions(), Version: ownVersion(), Log: a.log,
				Ready: func() { a.log.Info("ready", "socket", socket) },
			})
			if err != nil {
				return err
			}
			defer d.Close()
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			defer onHangup(ctx, func() {
				// What is wrong has been logged, and the daemon goes on as before.
				_ = d.Reload()
			})()
			return d.Serve(ctx)
		},
	}
	c.Flags().StringVar(&dir, "config", policy.Dir, "directory of the policy and of what is declared")
	return c
}

// onHangup calls f at each SIGHUP, until what it returns is called.
func onHangup(ctx context.Context, f func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				f()
			}
		}
	}()
	return func() {
		signal.Stop(hangups)
		cancel()
		<-done
	}
}
