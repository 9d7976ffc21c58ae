package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Path is where the metrics are.
const Path = "/metrics"

const (
	// maxConnections wait no longer than the times below, so that those who come then
	// have their turn.
	maxConnections = 64
	// maxScrapes are answered at once; others are told that there are too many.
	maxScrapes = 2
	maxHeader  = 8 << 10

	scrapeTime = 10 * time.Second
	headerTime = 5 * time.Second
	idleTime   = 2 * time.Minute // longer than scrapes are apart
)

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes, Timeout: scrapeTime, DisableCompression: true,
	}))
	return mux
}

// Serve answers scrapes until ctx ends, and closes the listener. What goes wrong with a
// connection is logged at level debug: it is the other side's.
func (m *Metrics) Serve(ctx context.Context, l net.Listener, log *slog.Logger) error {
	s := &http.Server{
		Handler:           m.Handler(),
		ReadHeaderTimeout: headerTime, ReadTimeout: headerTime, WriteTimeout: 2 * scrapeTime, IdleTimeout: idleTime,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	err := s.Serve(netutil.LimitListener(l, maxConnections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
