package daemontest

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/daemon"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/wire"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// measured has the daemon serve metrics at a socket, which is returned.
func (p *place) measured() (socket string) {
	p.Helper()
	socket = filepath.Join(p.etc, "metrics.sock")
	p.stop()
	p.change = func(c *daemon.Config) { c.Metrics.Address = "unix:" + socket }
	p.start()
	return socket
}

// scrape reads the metrics.
func (p *place) scrape(socket string) string {
	p.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	r, err := (&http.Client{Transport: transport}).Get("http://holdfast/metrics")
	if err != nil {
		p.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		p.Fatalf("scraped %s, error %v", r.Status, err)
	}
	return string(body)
}

// tells waits until all these lines are in the metrics.
func (p *place) tells(socket string, lines ...string) {
	p.Helper()
	for _, line := range lines {
		eventually(p.T, "metrics to have "+line, func() bool { return strings.Contains(p.scrape(socket), "\n"+line+"\n") })
	}
}

func TestMetricsTellWhatTheDaemonDoes(t *testing.T) {
	p := newPlace(t)
	socket := p.measured()
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the socket is %v, error %v", info, err)
	}
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	if err := c.attach("a", "pass"); !errors.Is(err, owned.ErrExists) {
		t.Fatalf("attached again: %v", err)
	}
	l, err := p.connect().hold("b", "pass")
	if err != nil {
		t.Fatal(err)
	}
	netns := `netns="` + p.netns() + `"`
	at := `interface="` + p.veth.NearName + `",lifetime="`
	p.tells(socket,
		`holdfast_requests_total{method="Attach",result="ok"} 2`,
		`holdfast_requests_total{method="Attach",result="Conflict"} 1`,
		`holdfast_request_duration_seconds_count{method="Attach"} 3`,
		`holdfast_conflicts_total{reason="name"} 1`,
		`holdfast_events_total{kind="attached"} 2`,
		`holdfast_members{`+at+`permanent",`+netns+`} 1`,
		`holdfast_members{`+at+`held",`+netns+`} 1`,
		`holdfast_leases 1`,
		`holdfast_clients 2`,
		`holdfast_client_users 1`,
		`holdfast_state_readable 1`,
		`holdfast_drifted_hooks 0`,
	)
	l.close()
	p.tells(socket, `holdfast_leases 0`, `holdfast_events_total{kind="ended"} 1`)

	// The policy changes, for the worse and then for nobody.
	p.write("policy.yaml", "version: 1\nrules:\n- name: all\n  match: {user: []}\n")
	if err := p.daemon.Reload(); err == nil {
		t.Error("a policy that is wrong was read")
	}
	p.write("policy.yaml", nobody)
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := c.detach("a"); !errors.Is(err, xdp.ErrPermission) {
		t.Errorf("detach: %v", err)
	}
	p.tells(socket,
		`holdfast_policy_reloads_total{result="failed"} 1`,
		`holdfast_policy_reloads_total{result="ok"} 1`,
		`holdfast_policy_rules 1`,
		`holdfast_denials_total{rule="nobody"} 1`,
		`holdfast_requests_total{method="Detach",result="NotPermitted"} 1`,
	)
	if err := os.Remove(filepath.Join(p.etc, "policy.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}

	// Another root detaches it.
	p.detachByForce()
	p.tells(socket, `holdfast_drift_total{kind="detached"} 1`, `holdfast_drifted_hooks 1`)
	// Whoever changes the chain then finds that out, and the rest is removed.
	if err := c.detach("a"); !errors.Is(err, xdp.ErrGone) {
		t.Errorf("detach: %v", err)
	}
	p.tells(socket, `holdfast_drifted_hooks 0`)
	p.empty()
}

func TestWhatIsRestoredIsCounted(t *testing.T) {
	p := newPlace(t)
	socket := p.measured()
	p.declare("nothing-like-it", "a")
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	p.tells(socket, `holdfast_undone_declarations 1`)
	p.declare(p.veth.NearName, "a")
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	p.tells(socket, `holdfast_undone_declarations 0`, `holdfast_restores_total{result="ok"} 1`)
	p.detachByForce()
	p.tells(socket, `holdfast_drift_total{kind="detached"} 1`, `holdfast_restores_total{result="ok"} 2`, `holdfast_drifted_hooks 0`)
	if err := os.Remove(filepath.Join(p.etc, "attachments.d/a.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := p.daemon.Reload(); err != nil {
		t.Fatal(err)
	}
	if err := p.connect().detach("a"); err != nil {
		t.Error(err)
	}
	p.empty()
}

// Who deletes an interface means all that is attached to it: that is told, and there is
// nothing to put right.
func TestAnInterfaceThatIsGoneIsNoDriftThatLasts(t *testing.T) {
	p := newPlace(t)
	socket := p.measured()
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	if err := p.veth.Near.Conn.Delete(p.veth.NearIndex); err != nil {
		t.Fatal(err)
	}
	p.tells(socket, `holdfast_drift_total{kind="interface_gone"} 1`, `holdfast_drifted_hooks 0`)
	if err := c.call("Collect", wire.Collect{}, nil); err != nil {
		t.Fatal(err)
	}
	p.empty()
}

// What somebody else has switched on is read, and never switched on.
func TestRunsAreToldWhileTheKernelCountsThem(t *testing.T) {
	p := newPlace(t)
	socket := p.measured()
	c := p.connect()
	if err := c.attach("a", "pass"); err != nil {
		t.Fatal(err)
	}
	p.tells(socket, `holdfast_members{interface="`+p.veth.NearName+`",lifetime="permanent",netns="`+p.netns()+`"} 1`)
	const setting = "/proc/sys/kernel/bpf_stats_enabled"
	before, err := os.ReadFile(setting)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(setting, before, 0) })
	if err := os.WriteFile(setting, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(p.scrape(socket), "\nholdfast_hook_runs_total") {
		t.Error("runs are told that nobody counts")
	}
	if err := os.WriteFile(setting, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	got := p.scrape(socket)
	if !strings.Contains(got, `holdfast_hook_runs_total{interface="`+p.veth.NearName+`",netns="`+p.netns()+`"} `) ||
		!strings.Contains(got, `holdfast_hook_run_seconds_total{`) {
		t.Error("runs are not told")
	}
	if err := os.WriteFile(setting, []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(p.scrape(socket), "\nholdfast_hook_runs_total") {
		t.Error("runs are told still")
	}
	if err := c.detach("a"); err != nil {
		t.Error(err)
	}
	p.empty()
}

// netns is the id of the near end's namespace.
func (p *place) netns() string {
	p.Helper()
	ns, err := xdp.OpenNamespace(p.veth.Near.Path())
	if err != nil {
		p.Fatal(err)
	}
	defer ns.Close()
	return ns.ID()
}

// detachByForce does what another root can.
func (p *place) detachByForce() {
	p.Helper()
	ns, err := xdp.OpenNamespace(p.veth.Near.Path())
	if err != nil {
		p.Fatal(err)
	}
	defer ns.Close()
	h, err := ns.Hook(p.veth.NearName, xdp.Auto)
	if err != nil {
		p.Fatal(err)
	}
	s, err := h.Query()
	if err != nil {
		p.Fatal(err)
	}
	link, err := xdp.OpenID(s.At(xdp.Auto).LinkID)
	if err != nil {
		p.Fatal(err)
	}
	defer link.Close()
	if err := link.Detach(); err != nil {
		p.Fatal(err)
	}
}

// What is attached in the daemon's own namespace is told, whosever it is.
func TestAllThatIsAttachedBesideTheDaemonIsTold(t *testing.T) {
	p := newPlace(t)
	socket := p.measured()
	c := p.connect()
	hook := wire.Hook{Interface: "lo", Mode: new(xdp.Generic)}
	if err := c.call("Attach", wire.Attach{Hook: hook, Name: "a", Object: &wire.Object{File: 0, Name: "pass.o"}}, nil, c.object("pass")); err != nil {
		t.Fatal(err)
	}
	p.tells(socket, `holdfast_attachments{held="link",lifetime="permanent",mode="generic",owner="holdfast"} 1`)
	if err := c.call("Detach", wire.Detach{Hook: hook, Name: "a"}, nil); err != nil {
		t.Fatal(err)
	}
	ns, err := xdp.OpenNamespace("")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := ns.Hook("lo", xdp.Generic)
	if err != nil {
		t.Fatal(err)
	}
	link, err := h.AttachLink(kerneltest.Pass(t, "other", nil))
	if err != nil {
		t.Fatal(err)
	}
	p.tells(socket, `holdfast_attachments{held="link",lifetime="unknown",mode="generic",owner="other"} 1`)
	if err := link.Close(); err != nil {
		t.Fatal(err)
	}
	p.empty()
}
