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
	// shared libraries come along), an absolute path, which may be a pattern,
	// or "peer LINE" for libxdp's tools of that line (see vm.Peer), which
	// tests on the machine's own kernel get as well.
	guestFiles = "guest.files"
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
		if peer, ok := peerLine(line); ok {
			more, err := peerFiles(ctx, peer)
			files = append(files, more...)
			return err
		}
		more, err := hostFiles(line)
		files = append(files, more...)
		return err
	})
}

// fetchPeers puts the peers that the package's tests want into the cache.
func (p *testPackage) fetchPeers(ctx context.Context) error {
	return p.eachLine(func(line string) error {
		peer, ok := peerLine(line)
		if !ok {
			return nil
		}
		_, err := vm.FetchPeer(ctx, peer, logf)
		return err
	})
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

func peerLine(line string) (peer string, ok bool) {
	words := strings.Fields(line)
	if len(words) != 2 || words[0] != "peer" {
		return "", false
	}
	return words[1], true
}

func peerFiles(ctx context.Context, line string) ([]vm.File, error) {
	peer, err := vm.FetchPeer(ctx, line, logf)
	if err != nil {
		return nil, err
	}
	return peer.Files()
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
