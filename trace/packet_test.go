package trace

import (
	"bytes"
	"encoding/binary"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-bpf/holdfast/chain"
)

const (
	aborted = Verdict(chain.Aborted)
	drop    = Verdict(chain.Drop)
	pass    = Verdict(chain.Pass)
	tx      = Verdict(chain.Tx)
)

func TestAPacketsWayIsToldInWords(t *testing.T) {
	members := func(names ...string) []Member {
		var all []Member
		for _, n := range names {
			all = append(all, Member{Name: n, ProgramID: 1, ProceedOn: chain.DefaultProceedOn})
		}
		return all
	}
	four := members("allow", "ddos-filter", "balancer", "count")
	odd := slices.Clone(four)
	odd[1].ProceedOn = chain.Set(chain.Drop)
	met := func(returned ...Verdict) []Step {
		var all []Step
		for i, v := range returned {
			all = append(all, Step{i, v})
		}
		return all
	}
	all, none := []bool{true, true, true, true}, []bool{false, false, false, false}
	for _, row := range []struct {
		name    string
		members []Member
		seen    []bool
		met     []Step
		verdict Verdict
		want    string
	}{
		{"the second drops", four, all, met(pass, drop), drop, "dropped by ddos-filter, member 2 of 4"},
		{"all pass", four, all, met(pass, pass, pass, pass), pass, "passed by all 4 members"},
		{"the last sends it back", four, all, met(pass, pass, pass, tx), tx, "sent back by count, member 4 of 4"},
		{"a number that is no action", four, all, met(77), 77, "dropped as an error (0x4d (no action)) by allow, member 1 of 4"},
		{"an error", four, all, met(aborted), aborted, "dropped as an error (XDP_ABORTED) by allow, member 1 of 4"},
		{"one passes it for good", odd, all, met(pass, pass), pass, "passed by ddos-filter, member 2 of 4"},
		{"one goes on after a drop", odd, all, met(pass, drop, pass, pass), pass, "passed by all 4 members"},
		{"alone", four[:1], all[:1], met(drop), drop, "dropped by allow, the only member"},
		{"alone, passing", four[:1], all[:1], met(pass), pass, "passed by allow, the only member"},
		{"what the last returns is the result", members("a", "b")[:1], all[:1], []Step{{0, pass}}, drop, "dropped"},
		{"fused", four, none, nil, drop, "dropped by allow, ddos-filter, balancer or count"},
		{"fused, and only one can be it", []Member{{Name: "a", ProceedOn: chain.Set(chain.Drop)}, four[1]}, none[:2], nil, drop, "dropped by ddos-filter, member 2 of 2"},
		{"fused, passing", four, none, nil, pass, "passed by all 4 members"},
		{"fused, and one may have passed it for good", odd, none, nil, pass, "passed by all 4 members, or by ddos-filter before the last"},
		{"one is not seen", four, []bool{true, false, true, true}, met(pass), drop, "dropped by ddos-filter, member 2 of 4"},
		{"nothing is known of members", nil, nil, nil, drop, "dropped"},
	} {
		p := &Packet{Met: row.met, Verdict: row.verdict}
		p.judge(row.members, row.seen)
		if got := p.Explain(row.members); got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
}

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what is written now; if that is right, run the test with -update", file)
	}
}

// sample is a packet that the second of two members drops.
func sample() (*Packet, []Member) {
	members := []Member{
		{Name: "allow", ProgramID: 1, ProceedOn: chain.DefaultProceedOn},
		{Name: "ddos-filter", ProgramID: 2, ProceedOn: chain.DefaultProceedOn},
	}
	p := &Packet{
		Time: time.Unix(1764324000, 123456789), Data: dns, Length: 60, Verdict: drop,
		Met: []Step{{0, pass}, {1, drop}},
	}
	p.judge(members, []bool{true, true})
	return p, members
}

// The golden file is one that Wireshark shows with its comment, and capinfos and
// tshark read.
func TestPacketsAreWrittenAsPcapng(t *testing.T) {
	var b bytes.Buffer
	w, err := NewWriter(&b, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(sample()); err != nil {
		t.Fatal(err)
	}
	// A length that has to be padded, and nobody to be named.
	if err := w.Write(&Packet{Time: time.Unix(1764324001, 0), Data: []byte{1, 2, 3}, Length: 3, Verdict: pass}, nil); err != nil {
		t.Fatal(err)
	}
	golden(t, "packets.pcapng", b.Bytes())
}

func TestAPacketIsSummedUp(t *testing.T) {
	for want, data := range map[string][]byte{
		"udp 10.1.2.3:4242 > 192.0.2.1:53":          dns,
		"udp [2001:db8::1]:4242 > [2001:db8::2]:53": dns6,
		"vlan 7 tcp 10.9.0.1:50000 > 10.1.2.3:443":  tagged(web, 7),
		"icmp 10.1.2.3 > 192.0.2.1":                 ping,
		"arp":                                       resolving,
		"ether proto 0x88cc":                        append(make([]byte, 12), 0x88, 0xcc),
		"not Ethernet":                              {1, 2},
		"proto 99 10.1.2.3 > 192.0.2.1":             packet(99, "10.1.2.3:1", "192.0.2.1:2"),
	} {
		if got := (&Packet{Data: data}).Summary(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func record(steps uint32, data []byte) []byte {
	b := binary.NativeEndian.AppendUint64(nil, 1000)
	for _, v := range []uint32{60, uint32(len(data)), uint32(drop), steps} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	for i := range uint32(maxSteps) {
		b = binary.NativeEndian.AppendUint32(b, i)
		b = binary.NativeEndian.AppendUint32(b, uint32(pass))
	}
	return append(b, data...)
}

func FuzzParseRecord(f *testing.F) {
	f.Add(record(2, []byte{1, 2, 3}))
	f.Add(record(100, nil))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseRecord(b, time.Time{}, maxSteps)
		if err != nil {
			return
		}
		if len(p.Met) > maxSteps || len(p.Data) > len(b) {
			t.Errorf("%d steps, %d bytes", len(p.Met), len(p.Data))
		}
		for _, s := range p.Met {
			if s.Member < 0 || s.Member >= maxSteps {
				t.Errorf("member %d", s.Member)
			}
		}
		p.Summary()
	})
}
