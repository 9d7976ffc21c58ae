package loadtest

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/object"
)

// prepare closes what it prepares when the test ends.
func prepare(t *testing.T, o *object.Object, opts object.LoadOptions) *object.Prepared {
	t.Helper()
	p, err := o.Prepare(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func loadPrepared(t *testing.T, p *object.Prepared) *ebpf.Program {
	t.Helper()
	program, err := p.Load()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

func TestAPreparedProgramHasItsMapsAndIsNotLoaded(t *testing.T) {
	kerneltest.NoLeaks(t)
	before := programs(t)
	o := read(t, "tailcall")
	opts := object.LoadOptions{Program: object.Choice{Name: "enter"}}
	p := prepare(t, o, opts)
	if n := programs(t) - before; n != 1 {
		t.Errorf("%d programs were loaded, want the tail call's target alone", n)
	}
	if p.Maps["jumps"] == nil || p.Info.Name != "enter" || p.RunConfig != object.DefaultRunConfig() {
		t.Errorf("it is %+v", p)
	}
	if got := run(t, loadPrepared(t, p), udp4(7777)); got != drop {
		t.Errorf("loaded, it returned %d, want the tail call's drop", got)
	}
	if l := load(t, o, opts); l.Digest != p.Digest {
		t.Error("its digest is not that of the loaded program")
	}
}

func TestAProgramGoesOnWithTheMapsThatItHad(t *testing.T) {
	kerneltest.NoLeaks(t)
	o := read(t, "variables", "u8=100", "writable=7", "verdict=VERDICT_DROP")
	first := prepare(t, o, object.LoadOptions{})
	run(t, loadPrepared(t, first), make([]byte, 60))

	again, err := object.Read("again.o", bytes.NewReader(o.ELF()))
	if err != nil {
		t.Fatal(err)
	}
	resumed, err := again.Resume(object.LoadOptions{}, first.Maps)
	if err != nil {
		t.Fatal(err)
	}
	defer resumed.Close()
	first.Close()
	if got := run(t, loadPrepared(t, resumed), make([]byte, 60)); got != drop {
		t.Errorf("returned %d, want the verdict that was set at first", got)
	}
	var seen [4]int64
	if err := resumed.Maps["seen"].Lookup(uint32(0), &seen); err != nil {
		t.Fatal(err)
	}
	if seen[0] != 100+'d' || seen[3] != 7 {
		t.Errorf("the program saw %v", seen)
	}
}

// An array goes on with what it holds now, and not with what the object has for
// it.
func TestNothingIsPutIntoMapsThatAreResumed(t *testing.T) {
	kerneltest.NoLeaks(t)
	opts := object.LoadOptions{Program: object.Choice{Name: "enter"}}
	first := prepare(t, read(t, "tailcall"), opts)
	if err := first.Maps["jumps"].Delete(uint32(0)); err != nil {
		t.Fatal(err)
	}
	before := programs(t)
	resumed, err := read(t, "tailcall").Resume(opts, first.Maps)
	if err != nil {
		t.Fatal(err)
	}
	defer resumed.Close()
	if n := programs(t) - before; n != 0 {
		t.Errorf("%d programs were loaded, want none", n)
	}
	if got := run(t, loadPrepared(t, resumed), udp4(7777)); got != pass {
		t.Errorf("returned %d, as if the array were full", got)
	}
}

func TestMapsThatCanNotBeResumedAreNamed(t *testing.T) {
	kerneltest.NoLeaks(t)
	o := read(t, "pinned")
	p := prepare(t, o, object.LoadOptions{})
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for name, c := range map[string]struct {
		maps  map[string]*ebpf.Map
		words []string
	}{
		"missing": {map[string]*ebpf.Map{"shared": p.Maps["shared"]}, []string{"resume pinned.o", ".rodata is missing", "[shared]"}},
		"another": {map[string]*ebpf.Map{"shared": other, ".rodata": p.Maps[".rodata"]}, []string{"ValueSize"}},
	} {
		_, err := o.Resume(object.LoadOptions{}, c.maps)
		if !errors.Is(err, object.ErrMap) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
	}
}

func TestMapsOfAPreparedProgramArePinnedWhenItIsAsked(t *testing.T) {
	kerneltest.NoLeaks(t)
	dir := kerneltest.BPFFS(t)
	opts := object.LoadOptions{PinMaps: dir}
	first, second := prepare(t, read(t, "pinned"), opts), prepare(t, read(t, "pinned"), opts)
	if _, err := os.Lstat(filepath.Join(dir, "shared")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pin is there already: %v", err)
	}
	if err := first.Pin(); err != nil {
		t.Fatal(err)
	}
	if err := second.Pin(); !errors.Is(err, fs.ErrExist) || !errors.Is(err, object.ErrMap) {
		t.Errorf("where another has pinned meanwhile: %v", err)
	}
	third := prepare(t, read(t, "pinned"), opts)
	if err := third.Pin(); err != nil {
		t.Errorf("with the pin that is there: %v", err)
	}
	run(t, loadPrepared(t, first), udp4(1))
	run(t, loadPrepared(t, third), udp4(1))
	var sum uint64
	if err := third.Maps["shared"].Lookup(uint32(0), &sum); err != nil || sum != 2 {
		t.Errorf("they counted %d, %v, want 2", sum, err)
	}
}

func TestAnObjectHandsOutItsFile(t *testing.T) {
	if !bytes.Equal(read(t, "filter", "drop_port=1").ELF(), bpfprog.ELF("filter")) {
		t.Error("it is not the file that was read")
	}
}
