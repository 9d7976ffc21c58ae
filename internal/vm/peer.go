package vm

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// peerSource says where Debian keeps one line of libxdp's tools.
type peerSource struct {
	line   string   // what versions begin with, such as "1.5"
	suites []string // the first that has this line is taken
}

// To add a line of libxdp, add a line here.
var peerSources = []peerSource{
	{"1.3", []string{"bookworm"}},
	{"1.5", []string{"trixie"}},
	{"1.6", []string{"sid", "forky"}},
}

// Peers names the lines of libxdp's tools that tests can run, oldest first.
func Peers() []string {
	var lines []string
	for _, p := range peerSources {
		lines = append(lines, p.line)
	}
	return lines
}

// Peer is one version of xdp-loader in the cache, with its libraries and their
// loader, so that it runs anywhere. libxdp and its dispatcher are in the
// program itself.
type Peer struct {
	Line    string // such as "1.5"
	Version string // of Debian's package, such as "1.5.4-1"
	Dir     string
}

// Files of a peer, below its directory.
const (
	peerProgram = "xdp-loader"
	peerLoader  = "ld.so"
	peerLibs    = "lib"
	peerVersion = "version"
)

// GuestCache is the guest's CacheDir, for those who set HOLDFAST_CACHE there.
const GuestCache = "/holdfast/cache"

const peersDir = "peers"

// FetchPeer returns the newest xdp-loader of a line of libxdp. What is in the
// cache is used as it is; to get a newer build of it, remove the line's
// directory from CacheDir. Otherwise the packages are downloaded and unpacked,
// not installed; progress goes to logf. Several processes may fetch at once.
func FetchPeer(ctx context.Context, line string, logf func(format string, args ...any)) (*Peer, error) {
	i := slices.IndexFunc(peerSources, func(p peerSource) bool { return p.line == line })
	if i < 0 {
		return nil, fmt.Errorf("no peer %q: there are %s", line, strings.Join(Peers(), ", "))
	}
	_, err := once(ctx, peersDir, line, func(work string) (string, error) {
		return peerSources[i].download(ctx, work, logf)
	})
	if err != nil {
		return nil, fmt.Errorf("xdp-loader %s: %w", line, err)
	}
	return OpenPeer(line)
}

// OpenPeer returns what FetchPeer has put into the cache, and never downloads.
func OpenPeer(line string) (*Peer, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, peersDir, line)
	version, err := os.ReadFile(filepath.Join(dir, peerVersion))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("xdp-loader %s is not in %s: tests that want it have a line \"peer %s\" in testdata/guest.files, and are run by make test-host or make test-vm", line, dir, line)
	}
	if err != nil {
		return nil, fmt.Errorf("xdp-loader %s: %w", line, err)
	}
	return &Peer{Line: line, Version: strings.TrimSpace(string(version)), Dir: dir}, nil
}

// Files lists the peer's files for the guest, below GuestCache.
func (p *Peer) Files() ([]File, error) {
	return Dir(p.Dir, filepath.Join(GuestCache, peersDir, p.Line))
}

// Command makes a command of the peer's xdp-loader. It runs with the peer's
// own libraries and none of the machine's.
func (p *Peer) Command(args ...string) *exec.Cmd {
	in := func(name string) string { return filepath.Join(p.Dir, name) }
	return exec.Command(in(peerLoader), append([]string{
		"--inhibit-cache", "--library-path", in(peerLibs), "--argv0", peerProgram, in(peerProgram),
	}, args...)...)
}

// download leaves the peer in a directory below work.
func (s peerSource) download(ctx context.Context, work string, logf func(string, ...any)) (string, error) {
	var seen []string
	for _, suite := range s.suites {
		dir := filepath.Join(work, suite)
		apt, err := newApt(dir, suite, "")
		if err != nil {
			return "", err
		}
		logf("xdp-loader %s: reading the package lists of %s", s.line, suite)
		if _, err := apt.run(ctx, "apt-get", "update"); err != nil {
			return "", err
		}
		fields, err := apt.show(ctx, "xdp-tools")
		if err != nil {
			return "", err
		}
		version := fields["Version"]
		if !strings.HasPrefix(version, s.line+".") {
			seen = append(seen, suite+" has "+version)
			continue
		}
		logf("xdp-loader %s: downloading version %s with its libraries (unpacked below the cache directory, not installed)", s.line, version)
		root := filepath.Join(dir, "root")
		libs, err := unpackProgram(ctx, apt, root, "xdp-tools", "usr/sbin/"+peerProgram)
		if err != nil {
			return "", err
		}
		peer := filepath.Join(work, "peer")
		return peer, arrangePeer(root, libs, version, peer)
	}
	return "", fmt.Errorf("no suite has such a version of xdp-tools (%s): correct peerSources in internal/vm", strings.Join(seen, ", "))
}

// unpackProgram unpacks a package, and of those it depends on as many as its
// program needs libraries from, nearest first. It returns the path of each
// library by its name.
func unpackProgram(ctx context.Context, apt *apt, root, pkg, program string) (map[string]string, error) {
	var all []string
	for level := []string{pkg}; len(level) > 0; {
		if err := apt.unpack(ctx, root, level...); err != nil {
			return nil, err
		}
		libs, missing, err := libraries(root, filepath.Join(root, program))
		if err != nil || len(missing) == 0 {
			return libs, err
		}
		all = append(all, level...)
		var next []string
		for _, name := range level {
			fields, err := apt.show(ctx, name)
			if err != nil {
				return nil, err
			}
			for _, dep := range dependNames(fields["Depends"]) {
				if !slices.Contains(all, dep) && !slices.Contains(next, dep) {
					next = append(next, dep)
				}
			}
		}
		level = next
	}
	return nil, fmt.Errorf("no package that %s depends on has all the libraries of %s", pkg, program)
}

// Where Debian's packages have libraries, before and after /lib became a
// link to /usr/lib.
var libraryDirs = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"}

// libraries finds the shared libraries of a program, and theirs, below root.
// The dynamic loader is among them: libc needs it.
func libraries(root, program string) (found map[string]string, missing []string, err error) {
	found = map[string]string{}
	for todo := []string{program}; len(todo) > 0; todo = todo[1:] {
		names, err := neededBy(todo[0])
		if err != nil {
			return nil, nil, err
		}
	names:
		for _, name := range names {
			if found[name] != "" || slices.Contains(missing, name) {
				continue
			}
			for _, dir := range libraryDirs {
				path := filepath.Join(root, dir, name)
				if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
					found[name] = path
					todo = append(todo, path)
					continue names
				}
			}
			missing = append(missing, name)
		}
	}
	return found, missing, nil
}

func neededBy(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("shared libraries of %s: %w", path, err)
	}
	defer f.Close()
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("shared libraries of %s: %w", path, err)
	}
	return names, nil
}

// arrangePeer moves what a peer needs out of the unpacked packages.
func arrangePeer(root string, libs map[string]string, version, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, peerLibs), 0o755); err != nil {
		return err
	}
	files := map[string]string{filepath.Join(root, "usr/sbin", peerProgram): peerProgram}
	for name, path := range libs {
		files[path] = filepath.Join(peerLibs, name)
		if strings.HasPrefix(name, "ld-linux") {
			files[path] = peerLoader
		}
	}
	for from, to := range files {
		// A library's name is a link to the file with its version.
		from, err := filepath.EvalSymlinks(from)
		if err != nil {
			return err
		}
		if err := os.Rename(from, filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, peerVersion), []byte(version+"\n"), 0o644)
}
