package libxdptest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/chain/libxdp"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// dir is the directory of the only chain there is.
func (b *bench) dir() string {
	b.Helper()
	all := dirs(b.T, b.bpffs)
	if len(all) != 1 {
		b.Fatalf("the bpffs has %v", all)
	}
	return filepath.Join(b.bpffs, "xdp", all[0])
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// swap exchanges two names.
func (b *bench) swap(one, other string) {
	b.Helper()
	for _, names := range [][2]string{{one, one + "-aside"}, {other, one}, {one + "-aside", other}} {
		b.must(os.Rename(names[0], names[1]))
	}
}

// repin pins another object in the place of a pin.
func (b *bench) repin(path string, fd int) {
	b.Helper()
	b.must(os.Remove(path))
	b.must(kernel.Pin(kernel.FD(fd), path))
}

// tellsTarget tells whether the kernel says which function a link of an extension
// is linked to, as it does since Linux 5.13.
func (b *bench) tellsTarget() bool {
	b.Helper()
	fd, err := kernel.OpenPin(b.dir() + "/prog0-link")
	b.must(err)
	defer fd.Close()
	link, err := kernel.ReadExtensionLink(fd)
	b.must(err)
	return link.TargetID != 0
}

// damages are what somebody may do to the pins of a chain of two, and the words
// for it. Each gets the directory, and a path beside it to put things aside.
var damages = map[string]struct {
	damage func(b *bench, dir, aside string)
	words  string
	// unseen says that kernels before 5.13 don't tell enough to see it.
	unseen bool
}{
	"the directory is missing": {damage: func(b *bench, dir, aside string) {
		b.must(os.Rename(dir, aside))
	}, words: "its pins are missing, there is no dispatch-"},
	"a program is missing": {damage: func(b *bench, dir, aside string) {
		b.must(os.Rename(dir+"/prog1-prog", aside))
	}, words: "prog1-prog is missing"},
	"a link is missing": {damage: func(b *bench, dir, aside string) {
		b.must(os.Rename(dir+"/prog0-link", aside))
	}, words: "prog0-link is missing"},
	"a program is a map": {damage: func(b *bench, dir, _ string) {
		b.repin(dir+"/prog0-prog", b.maps["met"].FD())
	}, words: "prog0-prog is not a program"},
	"a program is a link": {damage: func(b *bench, dir, _ string) {
		b.swap(dir+"/prog0-prog", dir+"/prog0-link")
	}, words: "prog0-prog is not a program"},
	"a program is no extension": {damage: func(b *bench, dir, _ string) {
		b.repin(dir+"/prog0-prog", kerneltest.Pass(b.T, "stranger", nil).FD())
	}, words: `"stranger", which is no extension`},
	"a link is a map": {damage: func(b *bench, dir, _ string) {
		b.repin(dir+"/prog0-link", b.maps["met"].FD())
	}, words: "prog0-link can't be read: not the link of an extension"},
	"a link is one of XDP": {damage: func(b *bench, dir, _ string) {
		far := open(b.T, b.veth.Far, b.veth.FarName, xdp.Native)
		link, err := far.AttachLink(kerneltest.Pass(b.T, "owner", nil))
		b.must(err)
		b.must(os.Remove(dir + "/prog0-link"))
		b.must(link.Persist(dir + "/prog0-link"))
		b.must(link.Close())
	}, words: "prog0-link can't be read: not the link of an extension"},
	"two programs are exchanged": {damage: func(b *bench, dir, _ string) {
		b.swap(dir+"/prog0-prog", dir+"/prog1-prog")
	}, words: "and beside it is program"},
	"two members are exchanged": {damage: func(b *bench, dir, _ string) {
		b.swap(dir+"/prog0-prog", dir+"/prog1-prog")
		b.swap(dir+"/prog0-link", dir+"/prog1-link")
	}, words: "is a link to another slot", unseen: true},
	"a member is another dispatcher's": {damage: func(b *bench, dir, aside string) {
		far := open(b.T, b.veth.Far, b.veth.FarName, xdp.Native)
		c, err := b.chains.Add(context.Background(), far, b.member("m1"), b.member("m2"))
		b.must(err)
		theirs := filepath.Join(b.bpffs, "xdp", fmt.Sprintf("dispatch-%d-%d", far.Index(), c.Dispatcher.ID))
		b.Cleanup(func() { b.chains.RemoveAll(context.Background(), far, xdp.Any) })
		b.must(os.Rename(theirs, aside))
		b.swap(dir+"/prog0-prog", aside+"/prog0-prog")
		b.swap(dir+"/prog0-link", aside+"/prog0-link")
	}, words: "is a link to program", unseen: true},
	"a program is a symbolic link to itself": {damage: func(b *bench, dir, aside string) {
		b.must(os.Rename(dir+"/prog0-prog", aside))
		b.must(os.Symlink("prog0-prog", dir+"/prog0-prog"))
	}, words: "prog0-prog can't be opened"},
	"a program is a symbolic link to the right one": {damage: func(b *bench, dir, aside string) {
		b.must(os.Rename(dir+"/prog0-prog", aside))
		b.must(os.Symlink(aside, dir+"/prog0-prog"))
	}, words: "prog0-prog can't be opened: open"},
	"a program is a directory": {damage: func(b *bench, dir, aside string) {
		b.must(os.Rename(dir+"/prog0-prog", aside))
		b.must(os.Mkdir(dir+"/prog0-prog", 0o700))
	}, words: "prog0-prog can't be opened"},
	"the directory is a symbolic link to the right one": {damage: func(b *bench, dir, aside string) {
		b.must(os.Rename(dir, aside))
		b.must(os.Symlink(aside, dir))
	}, words: "its pins can't be read"},
	"the directory is a symbolic link to itself": {damage: func(b *bench, dir, aside string) {
		b.must(os.Rename(dir, aside))
		b.must(os.Symlink(filepath.Base(dir), dir))
	}, words: "its pins can't be read"},
}

func TestDamagedPinsAreAProblemInWordsAndNothingElseIsTouched(t *testing.T) {
	needFreplace(t)
	for name, d := range damages {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			b := newBench(t)
			b.add(b.member("m1"), b.member("m2"))
			before := b.read()
			if d.unseen && !b.tellsTarget() {
				return
			}
			dir, aside := b.dir(), b.bpffs+"/aside"
			d.damage(b, dir, aside)
			putAside := tree(t, aside)

			c := b.read()
			if c.Kind != libxdp.Dispatcher || c.Version != 2 || len(c.Members) != 0 || !strings.Contains(c.Problem, d.words) {
				t.Errorf("%q does not say %q: %+v", c.Problem, d.words, c)
			}
			ctx := context.Background()
			_, add := b.chains.Add(ctx, b.hook, b.member("m3"))
			_, remove := b.chains.Remove(ctx, b.hook, libxdp.Target{Name: "m1"})
			_, replace := b.chains.Replace(ctx, b.hook, libxdp.Target{Name: "m1"}, b.member("m3"))
			for _, err := range []error{add, remove, replace} {
				e := refused(t, err, libxdp.ErrDamaged, d.words, "can be detached as a whole")
				if e.Rival == nil || e.Rival.Program.ID != before.Dispatcher.ID {
					t.Errorf("%q does not name the dispatcher", err)
				}
			}
			if now := b.read(); now.Dispatcher.ID != before.Dispatcher.ID {
				t.Error("the dispatcher was changed")
			}
			b.must(b.chains.RemoveAll(ctx, b.hook, xdp.Any))
			if c := b.read(); c.Kind != libxdp.Empty {
				t.Errorf("the hook has %+v", c)
			}
			if left := tree(t, aside); !slices.Equal(left, putAside) {
				t.Errorf("of what was put aside, %v, there is left %v", putAside, left)
			}
			// What is left of the directory, if anything, is nobody's chain.
			b.add(b.member("m1"))
			if met := b.send(); !slices.Equal(met, []string{"m1"}) {
				t.Errorf("a packet met %v", met)
			}
			b.remove("m1")
		})
	}
}

// tree lists the names below a path, the path itself too.
func tree(t *testing.T, path string) (names []string) {
	t.Helper()
	filepath.WalkDir(path, func(p string, _ os.DirEntry, err error) error {
		if err == nil {
			names = append(names, p)
		}
		return nil
	})
	return names
}

func TestWhatOthersPutIntoADirectoryStaysThere(t *testing.T) {
	kerneltest.NoLeaks(t)
	needFreplace(t)
	b := newBench(t)
	b.add(b.member("m1"), b.member("m2"))
	dir := b.dir()
	theirs := dir + "/theirs"
	b.must(kernel.Pin(kernel.FD(b.maps["met"].FD()), theirs))
	b.add(b.member("m3"))
	if c := b.read(); c.Problem != "" || !slices.Equal(names(c), []string{"m1", "m2", "m3"}) {
		t.Errorf("the chain is %+v", c)
	}
	b.chains.Wait()
	if left := tree(t, dir); !slices.Equal(left, []string{dir, theirs}) {
		t.Errorf("there is %v, want only %s", left, theirs)
	}
	cleaned, err := b.chains.Clean(context.Background(), b.hook.Namespace(), 0)
	b.must(err)
	if len(cleaned) != 1 || cleaned[0].Removed || cleaned[0].Path != dir || !strings.Contains(cleaned[0].Reason, "the protocol knows nothing of theirs") {
		t.Errorf("cleaned %+v", cleaned)
	}
	b.must(os.Remove(theirs))
	cleaned, err = b.chains.Clean(context.Background(), b.hook.Namespace(), b.hook.Index())
	b.must(err)
	if len(cleaned) != 1 || !cleaned[0].Removed {
		t.Errorf("cleaned %+v", cleaned)
	}
	b.want("m1", "m2", "m3")
	b.remove("m1", "m2", "m3")
}

// Somebody waits for dispatchers with directories of their names, in each of
// which is something of his own, or a link that leads elsewhere.
func TestADirectoryThatIsThereAlreadyLeadsNowhere(t *testing.T) {
	needFreplace(t)
	for name, c := range map[string]struct {
		trap  func(b *bench, dir string)
		words string // none if it is no obstacle
	}{
		"empty": {func(b *bench, dir string) { b.must(os.Mkdir(dir, 0o700)) }, ""},
		"with old pins": {func(b *bench, dir string) {
			b.must(os.Mkdir(dir, 0o700))
			b.must(os.Symlink(b.bpffs+"/victim", dir+"/prog0-link"))
		}, ""},
		"with something else":          {func(b *bench, dir string) { b.must(os.Mkdir(dir, 0o700)); b.must(os.Mkdir(dir+"/other", 0o700)) }, "knows nothing of other"},
		"a symbolic link to elsewhere": {func(b *bench, dir string) { b.must(os.Symlink(b.bpffs+"/victims", dir)) }, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			b := newBench(t)
			victim := b.bpffs + "/victims/prog0-link"
			b.must(os.Mkdir(b.bpffs+"/xdp", 0o700))
			b.must(os.Mkdir(filepath.Dir(victim), 0o700))
			b.must(kernel.Pin(kernel.FD(b.maps["met"].FD()), victim))
			next := kerneltest.ProgramID(t, kerneltest.Pass(t, "last", nil))
			for id := next + 1; id < next+10; id++ {
				c.trap(b, fmt.Sprintf("%s/xdp/dispatch-%d-%d", b.bpffs, b.hook.Index(), id))
			}
			_, err := b.chains.Add(context.Background(), b.hook, b.member("m1"))
			if c.words == "" {
				b.must(err)
				b.want("m1")
				b.remove("m1")
				b.want()
			} else {
				refused(t, err, xdp.ErrUnexpected, c.words)
				if c := b.read(); c.Kind != libxdp.Empty {
					t.Errorf("the hook has %+v", c)
				}
			}
			if left := tree(t, filepath.Dir(victim)); len(left) != 2 {
				t.Errorf("of the victim there is left %v", left)
			}
		})
	}
}

func TestTheDirectoryOfAllPinsIsNoLinkToElsewhere(t *testing.T) {
	kerneltest.NoLeaks(t)
	b := newBench(t)
	b.must(os.Mkdir(b.bpffs+"/elsewhere", 0o700))
	b.must(os.Symlink("elsewhere", b.bpffs+"/xdp"))
	_, err := b.chains.Add(context.Background(), b.hook, b.member("m1"))
	if canFreplace(err) {
		refused(t, err, xdp.ErrUnexpected, b.bpffs+"/xdp is no directory", "remove it")
	}
	if left := tree(t, b.bpffs+"/elsewhere"); len(left) != 1 {
		t.Errorf("there is %v", left)
	}
}

// fakeDispatcher attaches a program that calls itself a dispatcher, with that
// configuration.
func (b *bench) fakeDispatcher(data []byte, change func(*ebpf.MapSpec)) {
	b.Helper()
	spec := &ebpf.MapSpec{
		Name: ".rodata", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(data)), MaxEntries: 1,
		Flags:    unix.BPF_F_RDONLY_PROG,
		Contents: []ebpf.MapKV{{Key: uint32(0), Value: data}},
	}
	if change != nil {
		change(spec)
	}
	m, err := ebpf.NewMap(spec)
	b.must(err)
	b.Cleanup(func() { m.Close() })
	const name = "xdp_dispatcher"
	number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	main := &btf.Func{Name: name, Linkage: btf.GlobalFunc, Type: &btf.FuncProto{
		Return: number,
		Params: []btf.FuncParam{{Name: "ctx", Type: &btf.Pointer{Target: &btf.Struct{Name: "xdp_md", Size: 24}}}},
	}}
	p := kerneltest.Pass(b.T, name, func(s *ebpf.ProgramSpec) {
		load := asm.LoadMapPtr(asm.R1, m.FD())
		s.Instructions = append(asm.Instructions{btf.WithFuncMetadata(load.WithSymbol(name), main)}, passing()...)
	})
	b.must(b.hook.Attach(p, xdp.Any))
}

func TestAnUnknownDispatcherIsAProblemInWords(t *testing.T) {
	for name, c := range map[string]struct {
		data   []byte
		change func(*ebpf.MapSpec)
		words  string
	}{
		"a version to come":         {data(128, 236, 4, 2), nil, "version 4 of the dispatcher is not known"},
		"no version":                {data(84, 2), nil, "tells no version"},
		"too small":                 {data(80, 2), nil, "a value of 80 bytes"},
		"version 2, too small":      {data(100, 236, 2, 2), nil, "100 bytes, and version 2 has 124"},
		"version 3, too small":      {data(124, 236, 3, 2), nil, "124 bytes, and version 3 has 128"},
		"too many members":          {data(124, 236, 2, 11), nil, "tells of 11 members"},
		"several elements":          {data(124, 236, 2, 1), func(m *ebpf.MapSpec) { m.MaxEntries = 2 }, "no array of one element"},
		"a map that can be written": {data(124, 236, 2, 1), func(m *ebpf.MapSpec) { m.Flags = 0 }, "not read-only"},
		"a huge map":                {data(8192, 236, 2, 1), nil, "a value of 8192 bytes"},
		"without functions":         {data(124, 236, 2, 2), nil, "no function prog0"},
	} {
		t.Run(name, func(t *testing.T) {
			kerneltest.NoLeaks(t)
			b := newBench(t)
			b.fakeDispatcher(c.data, c.change)
			got := b.read()
			if got.Kind != libxdp.Dispatcher || got.MadeBy != libxdp.MadeByOther || !strings.Contains(got.Problem, c.words) {
				t.Errorf("%q does not say %q: %+v", got.Problem, c.words, got)
			}
			_, err := b.chains.Add(context.Background(), b.hook, b.member("m1"))
			refused(t, err, libxdp.ErrDamaged, c.words)
			refused(t, err, xdp.ErrConflict)
			b.must(b.chains.RemoveAll(context.Background(), b.hook, xdp.Any))
			b.want()
		})
	}
}

// data is a configuration that begins with these bytes.
func data(size int, first ...byte) []byte { return append(first, make([]byte, size-len(first))...) }
