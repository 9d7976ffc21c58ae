package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-bpf/holdfast/internal/vm/wire"
)

// writeInitramfs makes the guest's root: init, modules, the specification
// and the caller's files. It is not compressed: unpacking would cost more
// under emulation than reading costs.
func writeInitramfs(ctx context.Context, name string, image *Image, cfg Config) error {
	init, err := buildInit(ctx)
	if err != nil {
		return err
	}
	tree, err := openModules(image.Modules)
	if err != nil {
		return err
	}
	for _, name := range cfg.Modules {
		if !tree.Has(name) {
			return fmt.Errorf("kernel %s: Debian's packages have no module %s", image.Name, name)
		}
	}
	wanted := append(slices.DeleteFunc(slices.Clone(defaultModules), func(m string) bool { return !tree.Has(m) }), cfg.Modules...)
	order, err := tree.Order(wanted)
	if err != nil {
		return err
	}

	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	a := newArchive(f)
	modules, err := guestModules(a, order)
	if err != nil {
		return err
	}
	spec, err := json.Marshal(wire.Spec{Modules: modules, Sysctls: cfg.Sysctls, Commands: cfg.wireCommands()})
	if err != nil {
		return err
	}
	files := append([]File{
		{Guest: "/init", Content: init, Mode: 0o755},
		{Guest: wire.SpecPath, Content: spec},
		{Guest: "/etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\n")},
		{Guest: "/etc/group", Content: []byte("root:x:0:\n")},
		{Guest: "/etc/hosts", Content: []byte("127.0.0.1 localhost\n::1 localhost\n")},
	}, cfg.Files...)
	packed := map[string]string{}
	for _, file := range files {
		// Programs share libraries; only different files at one path are wrong.
		if host, ok := packed[file.Guest]; ok && host != "" && host == file.Host {
			continue
		}
		packed[file.Guest] = file.Host
		if err := addFile(a, file); err != nil {
			return err
		}
	}
	for _, dir := range append([]string{"/root"}, mountPoints...) {
		if err := a.Dir(dir); err != nil {
			return err
		}
	}
	if err := a.Close(); err != nil {
		return err
	}
	return f.Close()
}

// mountPoints hide what the initramfs has below them.
var mountPoints = []string{"/proc", "/sys", "/dev", "/tmp", "/run"}

func addFile(a *archive, file File) error {
	for _, dir := range mountPoints {
		if rest, below := strings.CutPrefix(path.Clean(file.Guest), dir); below && (rest == "" || rest[0] == '/') {
			return fmt.Errorf("%s: the guest mounts a file system over %s: choose another path", file.Guest, dir)
		}
	}
	if file.Content != nil || file.Host == "" {
		mode := file.Mode.Perm()
		if mode == 0 {
			mode = 0o644
		}
		return a.File(file.Guest, uint32(mode), int64(len(file.Content)), bytes.NewReader(file.Content))
	}
	f, err := os.Open(file.Host)
	if err != nil {
		return fmt.Errorf("file for the guest: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	mode := file.Mode.Perm()
	if mode == 0 {
		mode = info.Mode().Perm()
	}
	return a.File(file.Guest, uint32(mode), info.Size(), f)
}

// Dir lists the files below a host directory for a directory of the guest.
// A directory that is not there has no files.
func Dir(host, guest string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(host, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) && p == host {
				return filepath.SkipAll
			}
			return err
		}
		info, err := os.Stat(p) // through symbolic links: the guest gets the content
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(host, p)
		if err != nil {
			return err
		}
		files = append(files, File{Guest: path.Join(guest, filepath.ToSlash(rel)), Host: p})
		return nil
	})
	return files, err
}

// initOnce builds the guest's init once for all machines of this process.
var initOnce sync.Mutex
var initBinary []byte

func buildInit(ctx context.Context) ([]byte, error) {
	initOnce.Lock()
	defer initOnce.Unlock()
	if initBinary != nil {
		return initBinary, nil
	}
	dir, err := os.MkdirTemp("", "holdfast-init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	bin := filepath.Join(dir, "init")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin,
		"github.com/holdfast-bpf/holdfast/internal/vm/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the guest's init (needs Go, inside the module's tree): %w\n%s", err, out)
	}
	initBinary, err = os.ReadFile(bin)
	return initBinary, err
}
