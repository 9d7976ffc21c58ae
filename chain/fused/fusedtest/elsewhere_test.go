package fusedtest

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/fused"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

// elsewhere are members of the objects of xdp-tools and libxdp whose names begin
// so. Those that share maps by name share them.
func elsewhere(t *testing.T, pins string, names ...string) (members []fused.Member) {
	t.Helper()
	for _, name := range names {
		files, err := filepath.Glob("/usr/lib/*/bpf/" + name + ".o")
		if err != nil {
			t.Fatal(err)
		}
		if len(files) == 0 {
			t.Fatalf("there is no %s; the packages xdp-tools and libxdp1 have it", name)
		}
		slices.Sort(files)
		for _, path := range files {
			o, err := object.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			p := prepare(t, o, object.LoadOptions{PinMaps: pins})
			if err := p.Pin(); err != nil {
				t.Fatal(err)
			}
			members = append(members, fused.Member{
				Name:     strings.TrimSuffix(filepath.Base(path), ".o"),
				Priority: p.RunConfig.Priority, ProceedOn: p.RunConfig.ProceedOn, Program: p,
			})
		}
	}
	return members
}

// xdp-filter has ten builds of its program, which all use the same maps, and
// libxdp one for sockets of AF_XDP. None knows of the others.
func TestProgramsWrittenElsewhereAreOneChain(t *testing.T) {
	kerneltest.NoLeaks(t)
	members := elsewhere(t, kerneltest.BPFFS(t), "xdpfilt_*", "xsk_def_xdp_prog")
	if len(members) != 11 {
		t.Fatalf("there are %d members, want ten of xdp-filter and one of libxdp", len(members))
	}
	// Those that deny what is not listed would end the chain.
	for i := range members {
		members[i].ProceedOn = members[i].ProceedOn.With(chain.Drop)
	}
	if err := fused.Check(members); err != nil {
		t.Error(err)
	}
	p := load(t, members...)
	if got := run(t, p); got != pass {
		t.Errorf("the chain returned %d", got)
	}
	entries, err := fused.Read(kerneltest.ProgramID(t, p))
	if err != nil || len(entries) != 11 || entries[0].Name != "xdpfilt_alw_all" || entries[0].Priority != 10 {
		t.Errorf("the kernel tells of %+v, %v", entries, err)
	}

	// A port that is listed in the map that they share is dropped by those that
	// look there.
	for _, m := range members {
		if m.Name == "xdpfilt_dny_udp" {
			list(t, m.Program.Maps["filter_ports"], 53)
		}
	}
	for _, c := range []struct {
		members []fused.Member
		want    uint32
	}{
		{only(members, "xdpfilt_alw_eth", "xdpfilt_alw_all", "xsk_def_xdp_prog"), drop},
		{only(members, "xdpfilt_alw_eth", "xsk_def_xdp_prog"), pass},
	} {
		for i := range c.members {
			c.members[i].ProceedOn = chain.DefaultProceedOn
		}
		p := load(t, c.members...)
		if got, err := p.Run(&ebpf.RunOptions{Data: udp4(53)}); err != nil || got != c.want {
			t.Errorf("of %d members, a packet to the listed port: %d, %v, want %d", len(c.members), got, err, c.want)
		}
	}
}

func only(members []fused.Member, names ...string) (some []fused.Member) {
	for _, name := range names {
		i := slices.IndexFunc(members, func(m fused.Member) bool { return m.Name == name })
		some = append(some, members[i])
	}
	return some
}

// list has xdp-filter look at the destination of UDP packets to that port, as
// "xdp-filter port 53" does.
func list(t *testing.T, ports *ebpf.Map, port uint16) {
	t.Helper()
	const destination, udp = 1 << 1, 1 << 3
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	values := make([]uint64, cpus)
	for i := range values {
		values[i] = destination | udp
	}
	if err := ports.Put(uint32(port>>8|port<<8), values); err != nil {
		t.Fatal(err)
	}
}
