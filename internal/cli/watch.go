package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) watchCommand() *cobra.Command {
	var since string
	c := &cobra.Command{
		Use:   "watch [IF]",
		Short: "Tell what happens to attachments, as the daemon sees it",
		Long: `Tell what happens, a line each: who attached, replaced, detached or locked what,
whose holder has ended, what was denied or in conflict, and what is not as Holdfast
has left it. In the daemon's own network namespace it tells what others attach,
replace or detach by netlink, too, with the old and the new.

It needs the daemon, which remembers the last thousand events: --since tells those
of the time before, too. Root sees all, others what is in their network namespace.

With -o json each line is an object.`,
		Example: `  holdfast watch
  holdfast watch eth0 --since 1h
  holdfast watch -o json --since 2026-11-28T07:00:00Z`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("%q is one argument too many", args[1])
			}
			return nil
		},
		ValidArgsFunction: completeInterface,
		RunE: func(c *cobra.Command, args []string) error {
			from, err := parseSince(since, time.Now())
			if err != nil {
				return err
			}
			if a.embedded {
				return usagef("--embedded does without the daemon, and that is who tells")
			}
			iface := ""
			if len(args) == 1 {
				iface = args[0]
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, unix.SIGTERM)
			defer stop()
			socket := cmp.Or(a.socket, a.env.Getenv("HOLDFAST_SOCKET"), client.DefaultSocket)
			daemon, err := client.Open(ctx, client.Options{Socket: socket})
			if errors.Is(err, client.ErrNoDaemon) {
				return noDaemon(socket, "")
			}
			if err != nil {
				return err
			}
			defer daemon.Close()
			err = daemon.Watch(ctx, from, iface, a.printEvent)
			if ctx.Err() != nil || errors.Is(err, context.Canceled) {
				return nil // it was stopped
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return &xdp.Error{
					Op: "watch", Hook: socket, Err: xdp.ErrGone, Detail: "the daemon has ended",
					Hint: "what is attached goes on; start the daemon, and watch again with --since",
				}
			}
			return err
		},
	}
	c.Flags().StringVar(&since, "since", "", "also what has happened since then: a duration, as 1h, or a time, as 2026-11-28T07:00:00Z")
	return c
}

// parseSince reads a duration before now, or a time.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, usagef("--since %q: it is a duration, as 1h, or a time, as 2026-11-28T07:00:00Z", s)
	}
	return t, nil
}

// noDaemon says so; otherwise is what else could be done.
func noDaemon(socket, otherwise string) error {
	return &xdp.Error{
		Op: "ask the daemon", Hook: socket, Err: xdp.ErrNotFound, Detail: "nobody listens there",
		Hint: "start `holdfast daemon`" + otherwise,
	}
}

// printEvent prints one event as a line.
func (a *app) printEvent(e client.Event) error {
	if a.json() {
		b, err := json.Marshal(e)
		if err == nil {
			_, err = fmt.Fprintf(a.env.Stdout, "%s\n", b)
		}
		return err
	}
	words := []string{e.Time.Format(time.DateTime), string(e.Kind)}
	add := func(format, value string) {
		if value != "" {
			words = append(words, fmt.Sprintf(format, value))
		}
	}
	add("%s", e.Interface)
	add("member %s", e.Member)
	if e.Owner != nil {
		words = append(words, "by "+e.Owner.String())
	}
	line := strings.Join(words, " ")
	if e.Message != "" {
		line += ": " + e.Message
	}
	_, err := fmt.Fprintln(a.env.Stdout, strings.Map(printable, line))
	return err
}
