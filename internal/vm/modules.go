package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/holdfast-bpf/holdfast/internal/vm/wire"
)

// defaultModules are the network devices that tests make, and FUSE. A kernel may have
// one built in or not at all; then it is left out, and the test that wants
// the device finds out.
var defaultModules = []string{
	"veth", "bridge", "bonding", "dummy", "tun", "ifb", "vxlan", "macvlan", "netdevsim", "fuse",
}

// Some drivers make devices of their own when they are loaded. A test finds
// a machine with nothing but its loopback device.
var moduleParams = map[string]string{
	"bonding": "max_bonds=0",
	"dummy":   "numdummies=0",
	"ifb":     "numifbs=0",
}

// moduleTree finds modules by name. Debian's packages carry no modules.dep
// (depmod runs when they are installed, and these never are), so the
// dependencies are read from the modules themselves.
type moduleTree struct {
	paths  map[string]string // name -> host path
	loaded map[string]module
}

type module struct {
	name    string
	deps    []string
	content []byte // uncompressed
}

// openModules indexes the modules below dir, such as lib/modules/6.1.0-50-amd64.
func openModules(dir string) (*moduleTree, error) {
	t := &moduleTree{paths: map[string]string{}, loaded: map[string]module{}}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if base, _, ok := strings.Cut(d.Name(), ".ko"); ok {
			t.paths[moduleName(base)] = p
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	return t, nil
}

// moduleName is the kernel's own spelling: it has no dashes.
func moduleName(file string) string { return strings.ReplaceAll(file, "-", "_") }

// Has reports whether there is a module of this name.
func (t *moduleTree) Has(name string) bool {
	_, ok := t.paths[moduleName(name)]
	return ok
}

// Order returns the named modules and what they need, dependencies first.
func (t *moduleTree) Order(names []string) ([]module, error) {
	var order []module
	done := map[string]bool{}
	var visit func(name string, path []string) error
	visit = func(name string, path []string) error {
		if done[name] {
			return nil
		}
		for _, p := range path {
			if p == name {
				return fmt.Errorf("kernel modules: %s needs itself (by way of %s)", name, strings.Join(path, ", "))
			}
		}
		m, err := t.load(name)
		if err != nil {
			return err
		}
		for _, dep := range m.deps {
			if err := visit(dep, append(path, name)); err != nil {
				return err
			}
		}
		done[name] = true
		order = append(order, m)
		return nil
	}
	for _, name := range names {
		if err := visit(moduleName(name), nil); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func (t *moduleTree) load(name string) (module, error) {
	if m, ok := t.loaded[name]; ok {
		return m, nil
	}
	path, ok := t.paths[name]
	if !ok {
		return module{}, fmt.Errorf("kernel modules: %s is needed and not in the kernel's packages", name)
	}
	content, err := readModule(path)
	if err != nil {
		return module{}, fmt.Errorf("kernel module %s: %w", name, err)
	}
	deps, err := moduleDeps(content)
	if err != nil {
		return module{}, fmt.Errorf("kernel module %s: %w", name, err)
	}
	m := module{name: name, deps: deps, content: content}
	t.loaded[name] = m
	return m, nil
}

// readModule reads a module and unpacks it: the guest has no unpacker, and
// the kernel's own is not in all kernels.
func readModule(path string) ([]byte, error) {
	var unpack []string
	switch filepath.Ext(path) {
	case ".ko":
		return os.ReadFile(path)
	case ".xz":
		unpack = []string{"xz", "--decompress", "--stdout", path}
	case ".zst":
		unpack = []string{"zstd", "--decompress", "--stdout", "--quiet", path}
	case ".gz":
		unpack = []string{"gzip", "--decompress", "--stdout", path}
	default:
		return nil, fmt.Errorf("%s: no way to unpack it", path)
	}
	var out, errOut bytes.Buffer
	cmd := exec.Command(unpack[0], unpack[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w %s", strings.Join(unpack, " "), err, bytes.TrimSpace(errOut.Bytes()))
	}
	return out.Bytes(), nil
}

// moduleDeps reads the "depends" entry of a module's .modinfo section.
func moduleDeps(content []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("its .modinfo section: %w", err)
	}
	return parseModinfoDeps(info), nil
}

// parseModinfoDeps takes a .modinfo section: key=value entries, each ended
// by one or more NUL bytes.
func parseModinfoDeps(info []byte) []string {
	var deps []string
	for _, entry := range strings.Split(string(info), "\x00") {
		list, ok := strings.CutPrefix(entry, "depends=")
		if !ok {
			continue
		}
		for _, dep := range strings.Split(list, ",") {
			if dep != "" {
				deps = append(deps, moduleName(dep))
			}
		}
	}
	return deps
}

// guestModules packs modules into the initramfs and says how to load them.
func guestModules(a *archive, order []module) ([]wire.Module, error) {
	var list []wire.Module
	for _, m := range order {
		path := "/lib/modules/" + m.name + ".ko"
		if err := a.File(path, 0o644, int64(len(m.content)), bytes.NewReader(m.content)); err != nil {
			return nil, err
		}
		list = append(list, wire.Module{Path: path, Params: moduleParams[m.name]})
	}
	return list, nil
}
