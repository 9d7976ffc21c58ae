package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/internal/testbed"
)

const (
	ifName       = "eth0"
	filteredPort = 7777
	openPort     = 8888
	burst        = 1000 // packets a measurement, to each port
	pings        = 10
)

var (
	nearAddr = netip.MustParseAddr("10.111.0.1")
	farAddr  = netip.MustParseAddr("10.111.0.2")
)

// scene is where the demo plays: the server's namespace, which is also that of
// the demo's process and of the commands it runs; the client's; and, once it is
// made, one where the interface is moved to.
type scene struct {
	*report
	ctx       context.Context
	dir       string // with the command and the objects
	near, far testbed.End
	closers   []func() error

	// What steps hand on to later ones.
	attached   attachment // by the command, permanently
	attachPID  int        // the process that did it
	replacedID uint32     // a program that was attached, and no longer is
}

func newScene(ctx context.Context, dir string, r *report) (*scene, error) {
	s := &scene{report: r, ctx: ctx, dir: dir}
	err := s.build()
	if err != nil {
		s.close()
		return nil, fmt.Errorf("set the scene: %w", err)
	}
	return s, nil
}

func (s *scene) build() error {
	server, err := netns.Open("")
	if err != nil {
		return err
	}
	client, err := netns.New()
	if err != nil {
		return err
	}
	if s.near, err = s.end(server, ifName, nearAddr, 1); err != nil {
		return err
	}
	if s.far, err = s.end(client, ifName, farAddr, 2); err != nil {
		return err
	}
	lo, err := s.near.Conn.Device("lo")
	if err != nil {
		return err
	}
	if err := s.near.Conn.SetUp(lo.Index, true); err != nil {
		return err
	}
	return testbed.Wire(s.near, s.far)
}

// end is one side of the wire. The scene closes its namespace.
func (s *scene) end(ns *netns.NS, name string, addr netip.Addr, mac byte) (testbed.End, error) {
	s.closers = append(s.closers, ns.Close)
	conn, err := rtnl.Dial(ns.FD())
	if err != nil {
		return testbed.End{}, err
	}
	s.closers = append(s.closers, conn.Close)
	return testbed.End{NS: ns, Conn: conn, Name: name, Addr: addr, MAC: [6]byte{0x02, 0, 0, 0, 0, mac}}, nil
}

func (s *scene) close() {
	for _, f := range slices.Backward(s.closers) {
		_ = f()
	}
}

// finished is a command that has ended.
type finished struct {
	stdout, stderr string
	code           int
	pid            int
}

// run shows a command, runs it and shows what it printed.
func (s *scene) run(line string) (finished, error) {
	s.command(line)
	f, err := s.quietly(strings.Fields(line)...)
	if err == nil {
		s.says(f.stdout + f.stderr)
	}
	return f, err
}

func (s *scene) quietly(words ...string) (finished, error) {
	var stdout, stderr bytes.Buffer
	cmd := s.prepare(words...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || s.ctx.Err() != nil {
		return finished{}, fmt.Errorf("%s: %w", strings.Join(words, " "), errors.Join(err, s.ctx.Err()))
	}
	return finished{
		stdout: stdout.String(), stderr: stderr.String(),
		code: cmd.ProcessState.ExitCode(), pid: cmd.ProcessState.Pid(),
	}, nil
}

// prepare makes a command of words. It runs where the objects are.
func (s *scene) prepare(words ...string) *exec.Cmd {
	name := words[0]
	if name == "holdfast" {
		name = filepath.Join(s.dir, name)
	}
	cmd := exec.CommandContext(s.ctx, name, words[1:]...)
	cmd.Dir = s.dir
	return cmd
}

// must runs a command that has to succeed for the story to go on.
func (s *scene) must(line string) (finished, error) {
	f, err := s.run(line)
	if err == nil && f.code != 0 {
		err = fmt.Errorf("%s: exit code %d", line, f.code)
	}
	return f, err
}

// attachment is what the demo reads of `holdfast status -o json`.
type attachment struct {
	Interface string
	Mode      string
	Held      string
	Lifetime  string
	LinkID    uint32 `json:"link_id"`
	Program   struct {
		ID   uint32
		Name string
	}
	Chain struct {
		Engine  string
		Members []struct {
			Name    string
			Program struct{ ID uint32 }
		}
	}
	Holders []struct {
		PID  int
		Comm string
	}
}

// status asks the command what is attached.
func (s *scene) status(flags ...string) ([]attachment, error) {
	f, err := s.quietly(append([]string{"holdfast", "status", "-o", "json"}, flags...)...)
	if err != nil {
		return nil, err
	}
	if f.code != 0 {
		return nil, fmt.Errorf("holdfast status: exit code %d: %s", f.code, f.stderr)
	}
	var answer struct{ Result []attachment }
	if err := json.Unmarshal([]byte(f.stdout), &answer); err != nil {
		return nil, fmt.Errorf("holdfast status: %w", err)
	}
	return answer.Result, nil
}

// here is the only attachment there is.
func (s *scene) here(flags ...string) (attachment, error) {
	all, err := s.status(flags...)
	if err != nil {
		return attachment{}, err
	}
	if len(all) != 1 {
		return attachment{}, fmt.Errorf("there are %d attachments, and not 1", len(all))
	}
	return all[0], nil
}

// untouched proves that the attachment is still the same.
func (s *scene) untouched(flags ...string) error {
	at, err := s.here(flags...)
	if err != nil {
		return err
	}
	s.proof(at.Program.ID == s.attached.Program.ID && at.LinkID == s.attached.LinkID && at.Mode == s.attached.Mode,
		"still attached: program %d %q, owned by link %d", at.Program.ID, at.Program.Name, at.LinkID)
	return nil
}

// counters of the filter and of the counter, by key.
const (
	keySeen    = 0
	keyDropped = 1
)

// openCounters opens a map of a loaded program. The caller closes it; until
// then it outlives the program.
func openCounters(program uint32, name string) (*ebpf.Map, error) {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(program))
	if err != nil {
		return nil, err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return nil, err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, err
		}
		if info, err := m.Info(); err == nil && info.Name == name {
			return m, nil
		}
		m.Close()
	}
	return nil, fmt.Errorf("program %d has no map %s", program, name)
}

// sum adds up what the processors counted.
func sum(m *ebpf.Map, key uint32) (uint64, error) {
	var each []uint64
	if err := m.Lookup(key, &each); err != nil {
		return 0, err
	}
	var total uint64
	for _, n := range each {
		total += n
	}
	return total, nil
}

func (s *scene) dropped(program uint32) (uint64, error) {
	m, err := openCounters(program, "counters")
	if err != nil {
		return 0, err
	}
	defer m.Close()
	return sum(m, keyDropped)
}

// traffic is how much of a measurement arrived.
type traffic struct{ filtered, open, pings uint64 }

func (t traffic) String() string {
	return fmt.Sprintf("UDP %d: %4d of %d arrive   UDP %d: %4d of %d arrive   ping: %2d of %d answered",
		filteredPort, t.filtered, burst, openPort, t.open, burst, t.pings, pings)
}

var (
	allArrives = traffic{filtered: burst, open: burst, pings: pings}
	allDropped = traffic{filtered: 0, open: burst, pings: pings}
)

// measure sends packets of all kinds from the client to the server.
func (s *scene) measure() (t traffic, err error) {
	for _, port := range []struct {
		number  uint16
		arrived *uint64
	}{{filteredPort, &t.filtered}, {openPort, &t.open}} {
		f, err := s.flood(port.number, burst)
		if err != nil {
			return t, err
		}
		f.AwaitSent(burst)
		sent, arrived := f.Stop()
		if sent != burst {
			return t, fmt.Errorf("only %d of %d packets could be sent", sent, burst)
		}
		*port.arrived = arrived
	}
	err = s.far.NS.Do(func() (err error) {
		t.pings, err = ping(s.near.Addr, pings)
		return err
	})
	return t, err
}

const (
	// rate is slow enough for two processors that send, filter and replace.
	rate = 30_000
	// floodMax bounds a flood that a step ends when it has seen enough.
	floodMax = 600_000
)

func (s *scene) flood(port uint16, packets uint64) (*testbed.Flood, error) {
	return testbed.StartFlood(s.far.NS, s.near.NS, s.near.Addr, testbed.FloodOptions{
		Port: port, Packets: packets, Duration: 20 * time.Second, Rate: rate,
	})
}

// ping counts the answers to ICMP echo requests.
func ping(to netip.Addr, n int) (answers uint64, err error) {
	c, err := net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: to.AsSlice()})
	if err != nil {
		return 0, fmt.Errorf("ping: %w", err)
	}
	defer c.Close()
	const echoReply, echoRequest = 0, 8
	buf := make([]byte, 1500)
	for seq := range n {
		request := make([]byte, 8)
		request[0] = echoRequest
		binary.BigEndian.PutUint16(request[6:], uint16(seq))
		binary.BigEndian.PutUint16(request[2:], ^(uint16(echoRequest)<<8 + uint16(seq))) // the checksum
		if _, err := c.Write(request); err != nil {
			return answers, fmt.Errorf("ping: %w", err)
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		for {
			got, _, err := c.ReadFromIP(buf)
			if err != nil {
				break // not answered
			}
			if got >= 8 && buf[0] == echoReply && binary.BigEndian.Uint16(buf[6:]) == uint16(seq) {
				answers++
				break
			}
		}
	}
	return answers, nil
}
