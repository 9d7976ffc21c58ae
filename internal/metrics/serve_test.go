package metrics

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// served serves metrics at a socket until the test ends, and returns a client.
func served(t *testing.T, m *Metrics) (path string, client *http.Client) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "metrics.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l, slog.New(slog.DiscardHandler)) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving ended with %v", err)
		}
		if _, err := net.Dial("unix", path); err == nil {
			t.Error("somebody still listens")
		}
	})
	return path, &http.Client{Transport: transport}
}

func TestAScrapeIsAnswered(t *testing.T) {
	_, client := served(t, busy(some))
	for path, want := range map[string]int{Path: 200, "/": 404, "/metrics/x": 404, "/debug/pprof/": 404} {
		r, err := client.Get("http://holdfast" + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != want {
			t.Errorf("%s is answered with %s, error %v", path, r.Status, err)
		}
		if has := strings.Contains(string(body), "\nholdfast_clients 2\n"); has != (want == 200) {
			t.Errorf("%s has metrics: %v", path, has)
		}
	}
	r, err := client.Post("http://holdfast"+Path, "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a POST is answered with %s", r.Status)
	}
}

func TestHeadersHaveALimit(t *testing.T) {
	path, _ := served(t, busy(some))
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("answered with %s", r.Status)
	}
}
