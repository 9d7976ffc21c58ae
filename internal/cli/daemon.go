package cli

import (
	"cmp"
	"context"
	"os"
	"os/signal"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/daemon"
	"github.com/holdfast-bpf/holdfast/internal/metrics"
	"github.com/holdfast-bpf/holdfast/internal/systemd"
	"github.com/holdfast-bpf/holdfast/policy"
)

func (a *app) daemonCommand() *cobra.Command {
	var dir string
	var served daemon.Metrics
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
that can't be read leaves the one in force as it is.

With --metrics it tells Prometheus what it counts, at /metrics there.`,
		Example: `  holdfast daemon
  holdfast daemon --socket /tmp/holdfast.sock --config ./etc
  holdfast daemon --metrics unix:/run/holdfast/metrics.sock`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if a.embedded {
				return usagef("--embedded is to do without a daemon, and this is one")
			}
			if served.Interfaces < 1 {
				return usagef("--metrics-interfaces must be 1 or more")
			}
			if err := served.Check(); err != nil {
				return usagef("--metrics: %v", err)
			}
			socket := cmp.Or(a.socket, a.env.Getenv("HOLDFAST_SOCKET"), client.DefaultSocket)
			service, err := systemd.Start()
			if err != nil {
				return err
			}
			defer service.Close()
			config := daemon.Config{
				Socket: socket, Dir: dir, State: a.stateOptions(), Metrics: served, Version: ownVersion(), Log: a.log,
				Ready: func() {
					a.log.Info("ready", "socket", socket)
					a.notified(service.Ready())
				},
			}
			if err := a.withService(&config, service); err != nil {
				return err
			}
			a.raiseMemlock()
			// It runs for long, beside what the machine is for: memory before speed.
			debug.SetGCPercent(50)
			d, err := daemon.Start(config)
			if err != nil {
				return err
			}
			defer d.Close()
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			defer onHangup(ctx, func() {
				a.notified(service.Reloading())
				// What is wrong has been logged, and the daemon goes on as before.
				_ = d.Reload()
				a.notified(service.Ready())
			})()
			defer func() { a.notified(service.Stopping()) }()
			return d.Serve(ctx)
		},
	}
	c.Flags().StringVar(&dir, "config", policy.Dir, "directory of the policy and of what is declared")
	c.Flags().StringVar(&served.Address, "metrics", "", "serve metrics at this host:port, or at unix: and the path of a socket")
	c.Flags().IntVar(&served.Interfaces, "metrics-interfaces", metrics.DefaultInterfaces, "how many interfaces metrics tell of one by one; the others are one more")
	return c
}

// withService has the daemon use what systemd has given: a socket that it listens at,
// the watchdog, and the descriptor store.
func (a *app) withService(config *daemon.Config, service *systemd.Service) error {
	for _, d := range service.Descriptors {
		if d.Name != listenerName {
			continue // stored links have done their duty by not having ended
		}
		var err error
		if config.Listener, err = d.Listener(); err != nil {
			return err
		}
	}
	if service.Watchdog > 0 {
		config.Alive = func() { a.notified(service.Watching()) }
	}
	if service.Enabled() {
		config.Store = func(name string, f *os.File) error { return service.Store(name, f) }
		config.Drop = service.Remove
	}
	return nil
}

// listenerName is the one that the socket's unit gives its descriptor.
const listenerName = "holdfast"

// notified says that systemd could not be told something, which is no reason to end.
func (a *app) notified(err error) {
	if err != nil {
		a.log.Warn("systemd can't be told", "error", err)
	}
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
