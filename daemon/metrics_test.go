package daemon

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-bpf/holdfast/internal/metrics"
)

// A look that takes long is waited for by the next scrape, and not begun again.
func TestAScrapeDoesNotWaitForALongLook(t *testing.T) {
	var s survey
	one, two := []metrics.Attachment{{Mode: "native"}}, []metrics.Attachment{{Mode: "generic"}, {Mode: "native"}}
	if got := s.look(func() ([]metrics.Attachment, error) { return one, nil }); len(got) != 1 {
		t.Errorf("got %v", got)
	}
	if got := s.look(func() ([]metrics.Attachment, error) { return nil, errors.New("no") }); len(got) != 1 {
		t.Errorf("after a failure: %v", got)
	}
	release := make(chan struct{})
	if got := s.look(func() ([]metrics.Attachment, error) {
		<-release
		return two, nil
	}); len(got) != 1 {
		t.Errorf("while it is looked: %v", got)
	}
	close(release)
	// It is that one, or another that finds the same.
	if got := s.look(func() ([]metrics.Attachment, error) { return two, nil }); len(got) != 2 {
		t.Errorf("afterwards: %v", got)
	}
}

func TestMetricsAtAnAddressThatOthersReachAreWarnedOf(t *testing.T) {
	for address, warned := range map[string]bool{"127.0.0.1:0": false, ":0": true} {
		var log strings.Builder
		d := &Daemon{config: Config{Metrics: Metrics{Address: address}}, log: slog.New(slog.NewTextHandler(&log, nil))}
		d.declared = &declarations{daemon: d}
		d.metrics = d.newMetrics()
		l, lock, err := d.listenForMetrics(address)
		if err != nil || lock != nil {
			t.Fatalf("lock %v, error %v", lock, err)
		}
		if got := strings.Contains(log.String(), "other machines"); got != warned {
			t.Errorf("%s: warned is %v:\n%s", address, got, log.String())
		}
		var all sync.WaitGroup
		all.Go(func() {
			if err := d.metrics.Serve(t.Context(), l, d.log); err != nil {
				t.Error(err)
			}
		})
		_, port, _ := strings.Cut(strings.TrimPrefix(l.Addr().String(), "[::]"), ":")
		r, err := http.Get("http://127.0.0.1:" + port + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || !strings.Contains(string(b), "holdfast_build_info") {
			t.Errorf("%s: scraped %d bytes, error %v", address, len(b), err)
		}
		t.Cleanup(all.Wait) // when the test's context has ended
	}
}

func TestAnAddressOfMetricsIsCheckedBeforeAnythingElse(t *testing.T) {
	for address, ok := range map[string]bool{
		"": true, "127.0.0.1:9750": true, ":9750": true, "[::1]:9750": true, "unix:/run/x": true,
		"bogus": false, "unix:": false, "127.0.0.1": false, "127.0.0.1:": false, "::1:9750": false,
	} {
		if err := (Metrics{Address: address}).Check(); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
}
