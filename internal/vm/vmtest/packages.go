package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/holdfast-bpf/holdfast/internal/vm"
)

const (
	module = "github.com/holdfast-bpf/holdfast"
	// A package whose tests import the fixtures has kernel tests.
	marker = module + "/internal/kerneltest"
	// guestFiles in a package's testdata lists what its tests take from the
	// host beside their own testdata, a line each: a program's name (its
	// shared libraries come along), or an absolute path, which may be a pattern;
	// and, which tests on the machine's own kernel get as well, "peer LINE" for
	// libxdp's tools of that line (see vm.Peer), "root SUITE" for the root of a
	// Debian system (see vm.FetchRoot), and "packages VERSION…" for Holdfast's own
	// packages, built as these versions, in a directory that packagesEnv names.
	// With "only KERNEL" they run on that one and the machine's own.
	guestFiles    = "guest.files"
	packagesEnv   = "HOLDFAST_TEST_PACKAGES"
	guestPackages = "/holdfast/packages"
)

// testPackage is a package that has tests.
type testPackage struct {
	ImportPath   string
	Dir          string
	TestGoFiles  []string
	XTestGoFiles []string
	TestImports  []string
	XTestImports []string

	binary string // compiled tests, for kernel tests only
	only   string // kernel of the matrix that they run on, if not on all
	built  string // directory of Holdfast's packages, if it wants them
}

// name is the package's directory in the module, "." for its root.
func (p *testPackage) name() string {
	if p.ImportPath == module {
		return "."
	}
	return strings.TrimPrefix(p.ImportPath, module+"/")
}

// onKernel reports whether the package's tests are kernel tests.
func (p *testPackage) onKernel() bool {
	if below(p.ImportPath, marker) {
		return true
	}
	for _, imported := range append(p.TestImports, p.XTestImports...) {
		if below(imported, marker) {
			return true
		}
	}
	return false
}

func below(importPath, root string) bool {
	return importPath == root || strings.HasPrefix(importPath, root+"/")
}

// listPackages finds the packages with tests that the patterns name: those
// with kernel tests, and the pure ones.
func listPackages(ctx context.Context, patterns []string) (kernel, pure []*testPackage, err error) {
	args := append([]string{"list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles,TestImports,XTestImports"}, patterns...)
	out, err := goTool(ctx, args...)
	if err != nil {
		return nil, nil, err
	}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p testPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return kernel, pure, nil
		} else if err != nil {
			return nil, nil, fmt.Errorf("go list: %w", err)
		}
		switch {
		case len(p.TestGoFiles)+len(p.XTestGoFiles) == 0:
		case p.onKernel():
			if err := p.readOnly(); err != nil {
				return nil, nil, err
			}
			kernel = append(kernel, &p)
		default:
			pure = append(pure, &p)
		}
	}
}

// compile builds the package's static test binary into dir.
func (p *testPackage) compile(ctx context.Context, dir string) error {
	p.binary = filepath.Join(dir, strings.ReplaceAll(p.name(), "/", "-")+".test")
	_, err := goTool(ctx, "test", "-c", "-ldflags=-s -w", "-o", p.binary, p.ImportPath)
	return err
}

// goTool runs the go command, CGO-free, and returns what it printed.
func goTool(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(errOut.Bytes()))
	}
	return out, nil
}

// moduleRoot is the directory of this module's sources.
func moduleRoot(ctx context.Context) (string, error) {
	root, err := goTool(ctx, "list", "-m", "-f", "{{.Dir}}", module)
	return strings.TrimSpace(string(root)), err
}

// guestDir is the package's directory in the guest: as in the module, so
// that tests find testdata the usual way.
func (p *testPackage) guestDir() string { return path.Join("/holdfast", p.name()) }

func (p *testPackage) guestBinary() string {
	return path.Join(p.guestDir(), filepath.Base(p.binary))
}

// guestContent lists what the guest needs to run the package's tests.
func (p *testPackage) guestContent(ctx context.Context) ([]vm.File, error) {
	files, err := vm.Dir(filepath.Join(p.Dir, "testdata"), path.Join(p.guestDir(), "testdata"))
	if err != nil {
		return nil, err
	}
	files = append(files, vm.File{Guest: p.guestBinary(), Host: p.binary, Mode: 0o755})
	return files, p.eachLine(func(line string) error {
		more, err := p.lineFiles(ctx, line)
		files = append(files, more...)
		return err
	})
}

// lineFiles are the files of the guest for one line of a guest.files.
func (p *testPackage) lineFiles(ctx context.Context, line string) ([]vm.File, error) {
	switch what, names := directive(line); what {
	case "peer":
		peer, err := vm.FetchPeer(ctx, names[0], logf)
		if err != nil {
			return nil, err
		}
		return peer.Files()
	case "root":
		tar, err := vm.FetchRoot(ctx, names[0], logf)
		return []vm.File{vm.RootFile(names[0], tar)}, err
	case "packages":
		return vm.Dir(p.built, guestPackages)
	case "only":
		return nil, nil
	}
	return hostFiles(line)
}

// fetch puts what the package's tests want beside their testdata where they look
// for it, on whichever kernel they run. Holdfast's packages go to a directory
// below dir.
func (p *testPackage) fetch(ctx context.Context, dir string) error {
	return p.eachLine(func(line string) (err error) {
		switch what, names := directive(line); what {
		case "peer":
			_, err = vm.FetchPeer(ctx, names[0], logf)
		case "root":
			_, err = vm.FetchRoot(ctx, names[0], logf)
		case "packages":
			p.built = filepath.Join(dir, strings.ReplaceAll(p.name(), "/", "-")+".packages")
			err = buildPackages(ctx, p.built, names)
		}
		return err
	})
}

// buildPackages builds Holdfast's packages as several versions.
func buildPackages(ctx context.Context, dir string, versions []string) error {
	root, err := moduleRoot(ctx)
	if err != nil {
		return err
	}
	for _, version := range versions {
		cmd := exec.CommandContext(ctx, filepath.Join(root, "scripts/packages"), version, dir)
		cmd.Env = append(os.Environ(), "ARCHS=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("scripts/packages: %w\n%s", err, out)
		}
	}
	return nil
}

// readOnly reads which kernel the tests are for, if not for all.
func (p *testPackage) readOnly() error {
	return p.eachLine(func(line string) error {
		if what, names := directive(line); what == "only" {
			p.only = names[0]
		}
		return nil
	})
}

// runsOn tells whether the tests run in an environment.
func (p *testPackage) runsOn(environment string) bool {
	return p.only == "" || p.only == environment || environment == hostKernel
}

// eachLine calls f for what the package's guest.files has, if there is one.
func (p *testPackage) eachLine(f func(line string) error) error {
	name := filepath.Join(p.Dir, "testdata", guestFiles)
	list, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(list))
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if err := f(line); err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
	}
	return lines.Err()
}

// directive takes a line of a guest.files apart that is not a file: what it asks
// for, and the names of what.
func directive(line string) (what string, names []string) {
	words := strings.Fields(line)
	if len(words) < 2 {
		return "", nil
	}
	return words[0], words[1:]
}

// hostFiles resolves one line of a guest.files.
func hostFiles(line string) ([]vm.File, error) {
	if !filepath.IsAbs(line) {
		return vm.Program(line)
	}
	found, err := filepath.Glob(line)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no file %s: scripts/deps installs what tests take from the machine", line)
	}
	var files []vm.File
	for _, f := range found {
		files = append(files, vm.File{Guest: f, Host: f})
	}
	return files, nil
}
