package clitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/trace"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// needTracing skips where the machine's own kernel attaches no programs that trace: all
// others do.
func needTracing(t *testing.T) {
	t.Helper()
	p := kerneltest.Load(t, "pass", nil).Programs["xdp_pass"]
	id := kerneltest.ProgramID(t, p)
	tr, err := trace.Open(trace.Options{Program: id, Members: []trace.Member{{Name: "pass", ProgramID: id}}, Count: 1})
	switch {
	case err == nil:
		tr.Close()
	case !kerneltest.InMachine() && (errors.Is(err, xdp.ErrPermission) || errors.Is(err, xdp.ErrNotSupported)):
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

// send sends a UDP packet to Near.
func (m *machine) send(port uint16) {
	m.t.Helper()
	var c net.Conn
	m.Far.In(m.t, func() (err error) {
		c, err = net.Dial("udp4", netip.AddrPortFrom(m.NearAddr, port).String())
		return err
	})
	defer c.Close()
	if _, err := c.Write([]byte("payload")); err != nil {
		m.t.Fatal(err)
	}
}

// tracer is a `holdfast trace` that runs.
type tracer struct {
	*process
	log string
}

// trace starts to trace Near.
func (m *machine) trace(args ...string) tracer {
	m.t.Helper()
	log, err := os.Create(filepath.Join(m.t.TempDir(), "log"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd := m.command(append([]string{"trace", m.NearName, "--duration", "5m"}, args...)...)
	cmd.Stderr = log
	p := tracer{&process{m.Near.Start(m.t, cmd), m.t, new(bytes.Buffer)}, log.Name()}
	m.eventually("the trace to begin", func() bool { return p.begun(m) == 1 })
	return p
}

// begun is how often the trace began, anew where the chain had changed.
func (p tracer) begun(m *machine) int { return strings.Count(m.read(p.log), "tracing "+m.NearName) }

func (p tracer) wants(patterns ...string) {
	p.t.Helper()
	for _, want := range patterns {
		if got := p.line(); !regexp.MustCompile("^" + want + "$").MatchString(got) {
			p.t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestTraceTellsWhoDroppedWhichPacket(t *testing.T) {
	needTracing(t)
	m := newMachine(t)
	m.holdfast("trace", m.NearName).fails(7, "no packet meets a program there")
	m.holdfast("trace").fails(2, "IF is missing")
	m.holdfast("trace", m.NearName, "frobnicate").fails(2, "no word that it knows")
	m.attach("pass", "--name", "sample")
	m.attach("filter", "--name", "guard", "--set", "drop_port=53")
	m.attach("pass", "--name", "last")

	file := filepath.Join(t.TempDir(), "packets.pcapng")
	if err := os.WriteFile(file, []byte("of another trace"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := m.trace("--count", "3", "--write", file, "udp", "and", "port 53-54")
	m.send(1)
	m.send(53)
	const head = `\d\d:\d\d:\d\d\.\d{6} udp 10\.111\.0\.2:\d+ > 10\.111\.0\.1:`
	p.wants(head+"53, 49 bytes: dropped by guard, member 2 of 3", " +1 sample XDP_PASS, 2 guard XDP_DROP")
	m.send(54)
	p.wants(head+"54, 49 bytes: passed by all 3 members", " +1 sample XDP_PASS, 2 guard XDP_PASS, 3 last XDP_PASS")
	// A chain that changes is followed.
	m.holdfast("detach", m.NearName, "sample").succeeds()
	m.eventually("the chain to be looked at anew", func() bool { return p.begun(m) == 2 })
	m.send(53)
	p.wants(head+"53, 49 bytes: dropped by guard, member 1 of 2", " +1 guard XDP_DROP")
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d: %s", code, m.read(p.log))
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("others can read the packets: %v, %v", info.Mode(), err)
	}
	packets := m.read(file)
	for _, comment := range []string{"dropped by guard, member 2 of 3: 1 sample XDP_PASS, 2 guard XDP_DROP", "dropped by guard, member 1 of 2: 1 guard XDP_DROP"} {
		if strings.Count(packets, comment) != 1 {
			t.Errorf("%q is not the comment of one packet", comment)
		}
	}
}

func TestTraceFollowsAChainWhilePacketsCome(t *testing.T) {
	needTracing(t)
	m := newMachine(t)
	m.attach("pass", "--name", "sample")
	m.attach("pass", "--name", "last")
	p := m.trace("--count", "1000000000", "udp")
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for p.Lines.Scan() {
		}
	}()
	kerneltest.StartFlood(t, m.Veth, kerneltest.FloodOptions{Port: 53, Packets: 1 << 30, Duration: time.Minute, Rate: 1000})
	m.holdfast("detach", m.NearName, "sample").succeeds()
	m.eventually("the chain to be looked at anew", func() bool { return p.begun(m) == 2 })
	p.Kill()
	<-drained
}

func TestTraceAsksTheDaemonWhatRuns(t *testing.T) {
	needTracing(t)
	m := newMachine(t)
	socket, daemon := m.daemonOf(t.TempDir())
	defer daemon.Kill()
	m.attach("pass", "--name", "sample", "--socket", socket)
	m.attach("filter", "--name", "guard", "--set", "drop_port=53", "--socket", socket)
	p := m.trace("--count", "1", "-o", "json", "--socket", socket, "udp")
	m.send(53)
	p.tells("dropped by guard, member 2 of 2", "guard")
	m.holdfast("detach", m.NearName, "--all", "--socket", socket).succeeds()
}

func TestTraceWorksOnTheHooksOfOthers(t *testing.T) {
	needTracing(t)
	m := newMachine(t)
	foreign := m.own(kerneltest.Load(t, "filter", map[string]any{"drop_port": uint16(53)}).Programs["filter"])
	p := m.trace("--count", "1", "-o", "json")
	m.send(53)
	p.tells("dropped by filter, the only member", "filter")
	foreign.Close()
	m.empties()

	m.holdfast("xdp-loader", "load", m.NearName, kerneltest.ObjectFile(t, "pass"), kerneltest.ObjectFile(t, "drop")).succeeds()
	p = m.trace("--count", "1", "-o", "json")
	m.send(53)
	p.tells("dropped by xdp_drop, member 1 of 2", "xdp_drop")
	m.holdfast("xdp-loader", "unload", m.NearName, "--all").succeeds()
}

// own attaches a program as somebody does who knows nothing of Holdfast.
func (m *machine) own(p *ebpf.Program) *xdp.Link {
	m.t.Helper()
	ns, err := xdp.OpenNamespace(m.Near.Path())
	if err != nil {
		m.t.Fatal(err)
	}
	defer ns.Close()
	hook, err := ns.Hook(m.NearName, xdp.Native)
	if err != nil {
		m.t.Fatal(err)
	}
	link, err := hook.AttachLink(p)
	if err != nil {
		m.t.Fatal(err)
	}
	return link
}

// tells reads the packet that the process prints as JSON, and waits for its end.
func (p tracer) tells(result, by string) {
	p.t.Helper()
	var got struct {
		Result  string
		Verdict string
		EndedBy []string `json:"ended_by"`
		Met     []struct{ Member, Returned string }
	}
	if err := json.Unmarshal([]byte(p.line()), &got); err != nil {
		p.t.Fatal(err)
	}
	if got.Result != result || got.Verdict != "XDP_DROP" || len(got.EndedBy) != 1 || got.EndedBy[0] != by || len(got.Met) == 0 {
		p.t.Errorf("%+v", got)
	}
	if code := p.code(); code != 0 {
		p.t.Errorf("exit code %d", code)
	}
}
