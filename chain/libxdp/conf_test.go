package libxdp

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-bpf/holdfast/chain"
)

var everything = cmp.AllowUnexported(conf{}, slot{}, item{})

// pad appends zeros up to the size.
func pad(size int, hexes ...string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(hexes, ""), " ", ""))
	if err != nil {
		panic(err)
	}
	return append(b, make([]byte, size-len(b))...)
}

// at is bytes with those at an offset replaced.
func at(b []byte, offset int, hexes string) []byte {
	b = bytes.Clone(b)
	copy(b[offset:], pad(len(hexes)/2, hexes))
	return b
}

func TestConfigurationsAreReadByteByByte(t *testing.T) {
	two := []slot{
		{proceedOn: chain.Set(chain.Pass), priority: 10},
		{proceedOn: chain.Set(chain.Drop, chain.Redirect), priority: 0xfffffffe},
	}
	flagged := []slot{
		{proceedOn: two[0].proceedOn, priority: two[0].priority, frags: true},
		{proceedOn: two[1].proceedOn, priority: two[1].priority, frags: true, deviceBound: true},
	}
	v1 := at(at(pad(84, "02"), 4, "0400008012000080"), 44, "0a000000feffffff")
	v2 := at(at(at(pad(124, "ec020201"), 4, "0400008012000080"), 44, "0a000000feffffff"), 84, "2000000060000000")
	v3 := at(append(at(v2, 1, "03"), 0, 0, 0, 0), 124, "01")
	for name, c := range map[string]struct {
		data    []byte
		version int
		want    conf
	}{
		"version 1":         {v1, 1, conf{version: 1, slots: two}},
		"version 2":         {v2, 2, conf{version: 2, frags: true, slots: flagged}},
		"version 3":         {v3, 3, conf{version: 3, frags: true, deviceBound: true, slots: flagged}},
		"version 2, larger": {append(bytes.Clone(v2), make([]byte, 4)...), 2, conf{version: 2, frags: true, slots: flagged}},
		"none":              {pad(124, "ec020000"), 2, conf{version: 2}},
		"slots not in use":  {at(v2, 2, "01"), 2, conf{version: 2, frags: true, slots: flagged[:1]}},
	} {
		got, err := decodeConf(c.data, c.version)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(c.want, got, everything); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
	for name, c := range map[string]struct {
		conf conf
		want []byte
	}{
		"version 1": {conf{version: 1, slots: two}, v1},
		"version 2": {conf{version: 2, frags: true, slots: flagged}, v2},
		"version 3": {conf{version: 3, frags: true, deviceBound: true, slots: flagged}, v3},
	} {
		if got := c.conf.encode(); !bytes.Equal(got, c.want) {
			t.Errorf("%s is written\n%x, want\n%x", name, got, c.want)
		}
	}
}

func TestTheVersionIsInTheDataFrom2On(t *testing.T) {
	for data, want := range map[string]int{
		"\xec\x02": 2, "\xec\x03": 3, "\xec\x00": 0, "\xec\xff": 255,
		"\x02\x00": -1, "\xec": -1, "": -1,
	} {
		got, ok := versionOf([]byte(data))
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%x: version %d, want %d", data, got, want)
		}
	}
}

func TestWhatIsNoConfigurationIsAnswered(t *testing.T) {
	for name, c := range map[string]struct {
		data    []byte
		version int
		words   string
	}{
		"unknown version":     {pad(128), 4, "version 4 of the dispatcher is not known"},
		"version 0":           {pad(128), 0, "version 0"},
		"too short for 1":     {pad(83), 1, "83 bytes, and version 1 has 84"},
		"too short for 2":     {pad(123), 2, "123 bytes, and version 2 has 124"},
		"too short for 3":     {pad(124), 3, "124 bytes, and version 3 has 128"},
		"too long for 3":      {pad(129), 3, "129 bytes, and version 3 has 128"},
		"more than ten slots": {pad(124, "ec020b00"), 2, "tells of 11 members"},
		"many more in 1":      {pad(84, "ff"), 1, "tells of 255 members"},
	} {
		if _, err := decodeConf(c.data, c.version); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v does not say %q", name, err, c.words)
		}
	}
}

func TestAConfigurationIsReadAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := conf{version: rapid.IntRange(1, 3).Draw(t, "version")}
		c.frags = c.version >= 2 && rapid.Bool().Draw(t, "frags")
		c.deviceBound = c.version >= 3 && rapid.Bool().Draw(t, "device-bound")
		for range rapid.IntRange(0, MaxMembers).Draw(t, "slots") {
			s := slot{
				proceedOn: chain.Actions(rapid.Uint32Max(31).Draw(t, "actions")),
				priority:  rapid.Uint32().Draw(t, "priority"),
			}
			s.frags = c.version >= 2 && rapid.Bool().Draw(t, "slot frags")
			s.deviceBound = c.version >= 2 && rapid.Bool().Draw(t, "slot device-bound")
			c.slots = append(c.slots, s)
		}
		b := c.encode()
		version, ok := versionOf(b)
		if ok != (c.version >= 2) || ok && version != c.version {
			t.Fatalf("version %d, %v", version, ok)
		}
		got, err := decodeConf(b, c.version)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, got, everything); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzConf(f *testing.F) {
	for version := 1; version <= 3; version++ {
		f.Add(conf{version: version, slots: []slot{{4, 50, true, false}, {31, 1, false, true}}}.encode(), version)
	}
	f.Add([]byte{236, 2, 10}, 2)
	f.Add(bytes.Repeat([]byte{255}, 128), 3)
	f.Fuzz(func(t *testing.T, b []byte, version int) {
		if v, ok := versionOf(b); ok {
			version = v
		}
		c, err := decodeConf(b, version)
		if err != nil {
			return
		}
		if len(c.slots) > MaxMembers {
			t.Fatalf("%d slots", len(c.slots))
		}
		for _, s := range c.slots {
			if s.proceedOn.Has(stubAction) {
				t.Error("the stub's action is taken for a member's")
			}
		}
		again, err := decodeConf(c.encode(), version)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, again, everything); diff != "" {
			t.Error(diff)
		}
	})
}

// dispatchers are the objects that Holdfast loads, as files.
func dispatchers() map[int][]byte {
	return map[int][]byte{2: _DispatcherV2Bytes, 3: _DispatcherV3Bytes}
}

func TestOurDispatchersAreWhatTheProtocolAsksFor(t *testing.T) {
	for version, file := range dispatchers() {
		spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		if n := len(spec.Maps); n != 1 {
			t.Errorf("version %d has %d maps", version, n)
		}
		if size := int(spec.Maps[".rodata"].ValueSize); size != layouts[version].size {
			t.Errorf("version %d has a configuration of %d bytes, want %d", version, size, layouts[version].size)
		}
		// What the kernel gets is what everybody reads from it.
		image, err := images[version]()
		if err != nil {
			t.Fatal(err)
		}
		types, err := btf.LoadSpecFromReader(bytes.NewReader(image.types))
		if err != nil {
			t.Fatal(err)
		}
		functions, err := slotFunctions(types, MaxMembers)
		if err != nil {
			t.Errorf("version %d: %v", version, err)
		}
		for slot, ids := range functions {
			if id := image.typeIDs[slotFunction(slot)]; id != ids[0] {
				t.Errorf("version %d: the function of slot %d is said to be type %d, and is %d", version, slot, id, ids[0])
			}
		}
		if who := madeBy(types); who != MadeByHoldfast {
			t.Errorf("version %d is said to be made by %s", version, who)
		}
		for _, path := range []string{"/home/", "/root/", "/tmp/", "/usr/", "/build/"} {
			if bytes.Contains(file, []byte(path)) {
				t.Errorf("version %d contains the path %s", version, path)
			}
		}
	}
}

// types is the BTF of these types, as it is read back.
func types(t *testing.T, all ...btf.Type) *btf.Spec {
	t.Helper()
	b, err := btf.NewBuilder(all, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestTheVersionOfOldDispatchersIsInTheirTypes(t *testing.T) {
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	section := func(name, variable string, of btf.Type) *btf.Datasec {
		v := &btf.Var{Name: variable, Type: of, Linkage: btf.GlobalVar}
		return &btf.Datasec{Name: name, Size: 8, Vars: []btf.VarSecinfo{{Type: v, Size: 8}}}
	}
	array := func(n uint32) btf.Type {
		return &btf.Pointer{Target: &btf.Array{Index: number, Type: number, Nelems: n}}
	}
	for name, c := range map[string]struct {
		section *btf.Datasec
		want    int
	}{
		"version 1":          {section("xdp_metadata", "dispatcher_version", array(1)), 1},
		"version 7":          {section("xdp_metadata", "dispatcher_version", array(7)), 7},
		"another section":    {section("metadata", "dispatcher_version", array(1)), -1},
		"another variable":   {section("xdp_metadata", "version", array(1)), -1},
		"no pointer":         {section("xdp_metadata", "dispatcher_version", number), -1},
		"no array behind it": {section("xdp_metadata", "dispatcher_version", &btf.Pointer{Target: number}), -1},
	} {
		got, ok := versionInTypes(types(t, c.section))
		if !ok {
			got = -1
		}
		if got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestWhoMadeADispatcherIsInItsTypes(t *testing.T) {
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	function := func(name string, params ...string) *btf.Func {
		proto := &btf.FuncProto{Return: number}
		for _, p := range params {
			proto.Params = append(proto.Params, btf.FuncParam{Name: p, Type: number})
		}
		return &btf.Func{Name: name, Type: proto, Linkage: btf.GlobalFunc}
	}
	for name, c := range map[string]struct {
		function *btf.Func
		want     string
	}{
		"ours":             {function("xdp_dispatcher", "holdfast_ctx"), MadeByHoldfast},
		"theirs":           {function("xdp_dispatcher", "ctx"), MadeByOther},
		"of no parameters": {function("xdp_dispatcher"), MadeByOther},
		"of two":           {function("xdp_dispatcher", "holdfast_ctx", "x"), MadeByOther},
		"another function": {function("prog0", "holdfast_ctx"), MadeByOther},
	} {
		if got := madeBy(types(t, c.function)); got != c.want {
			t.Errorf("%s: made by %s, want %s", name, got, c.want)
		}
	}
}
