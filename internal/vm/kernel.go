package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// kernelSource says where Debian keeps one kernel of the test matrix.
type kernelSource struct {
	name string
	// suite of the main mirror, and of the security mirror where a release
	// gets its newest kernel only there.
	suite, security string
}

// To add a kernel, add a line here: the newest linux-image-amd64 of these
// suites is taken.
var kernelSources = []kernelSource{
	{name: "5.10", suite: "bullseye", security: "bullseye-security"},
	{name: "6.1", suite: "bookworm", security: "bookworm-security"},
	{name: "6.12", suite: "trixie", security: "trixie-security"},
	{name: "newest", suite: "trixie-backports"},
}

// Full is the entry that runs in full what takes freplace, which the machine's own
// kernel may refuse, and of which the others run a part.
const Full = "6.12"

// Kernels names the entries of the test matrix, oldest first.
func Kernels() []string {
	var names []string
	for _, k := range kernelSources {
		names = append(names, k.name)
	}
	return names
}

// Image is a kernel in the cache.
type Image struct {
	Name    string // entry of the matrix, such as "6.1"
	Release string // what uname -r says, such as "6.1.0-50-amd64"
	Vmlinuz string // path of the compressed kernel
	Modules string // directory of its modules
}

// Fetch returns the kernel of a matrix entry. What is in the cache is used
// as it is; to get a newer build of it, remove the entry's directory from
// CacheDir. Otherwise the packages are downloaded and unpacked, not
// installed; progress goes to logf. Several processes may fetch at once.
func Fetch(ctx context.Context, name string, logf func(format string, args ...any)) (*Image, error) {
	i := slices.IndexFunc(kernelSources, func(k kernelSource) bool { return k.name == name })
	if i < 0 {
		return nil, fmt.Errorf("no kernel %q: there are %s", name, strings.Join(Kernels(), ", "))
	}
	dir, err := once(ctx, "kernels", name, func(work string) (string, error) {
		return kernelSources[i].download(ctx, work, logf)
	})
	if err != nil {
		return nil, fmt.Errorf("kernel %s: %w", name, err)
	}
	return openImage(name, dir)
}

func openImage(name, dir string) (*Image, error) {
	vmlinuz := filepath.Join(dir, "vmlinuz")
	found, err := filepath.Glob(filepath.Join(dir, "modules", "*"))
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(vmlinuz); err != nil || len(found) != 1 {
		return nil, fmt.Errorf("kernel %s: %s is not a kernel that was put there whole: remove it and run again", name, dir)
	}
	return &Image{Name: name, Release: filepath.Base(found[0]), Vmlinuz: vmlinuz, Modules: found[0]}, nil
}

// download leaves vmlinuz and modules/RELEASE in a directory below work.
func (k kernelSource) download(ctx context.Context, work string, logf func(string, ...any)) (string, error) {
	apt, err := newApt(work, k.suite, k.security)
	if err != nil {
		return "", err
	}
	logf("kernel %s: reading the package lists of %s", k.name, k.suite)
	if _, err := apt.run(ctx, "apt-get", "update"); err != nil {
		return "", err
	}
	packages, version, err := k.packages(ctx, apt)
	if err != nil {
		return "", err
	}
	logf("kernel %s: downloading %s, version %s (unpacked below the cache directory, not installed)", k.name, strings.Join(packages, " "), version)
	root := filepath.Join(work, "root")
	if err := apt.unpack(ctx, root, packages...); err != nil {
		return "", err
	}
	kernel := filepath.Join(work, "kernel")
	return kernel, arrange(root, kernel)
}

// A kernel's packages carry its version in their names. What they are called
// has changed: image and modules were one package before 7.x, where the
// image became linux-binary and the modules linux-modules.
var kernelPackage = regexp.MustCompile(`^linux-(image|binary|modules)-[0-9]`)

// packages follows the dependencies of Debian's name for its current kernel
// to the packages with the files in them.
func (k kernelSource) packages(ctx context.Context, apt *apt) (names []string, version string, err error) {
	todo := []string{"linux-image-amd64"}
	for len(todo) > 0 {
		fields, err := apt.show(ctx, todo[0])
		if err != nil {
			return nil, "", err
		}
		if version == "" {
			version = fields["Version"]
		}
		todo = todo[1:]
		for _, dep := range dependNames(fields["Depends"]) {
			if kernelPackage.MatchString(dep) && !slices.Contains(names, dep) {
				names = append(names, dep)
				todo = append(todo, dep)
			}
		}
	}
	if len(names) == 0 {
		return nil, "", fmt.Errorf("linux-image-amd64 of %s depends on no kernel", k.suite)
	}
	return names, version, nil
}

// arrange picks the kernel and its modules out of the unpacked packages.
func arrange(root, dir string) error {
	vmlinuz, err := globOne(root, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
	if err != nil {
		return err
	}
	modules, err := globOne(root, "lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "modules"), 0o755); err != nil {
		return err
	}
	if err := os.Rename(vmlinuz, filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	return os.Rename(modules, filepath.Join(dir, "modules", filepath.Base(modules)))
}

func globOne(root string, patterns ...string) (string, error) {
	var found []string
	for _, pattern := range patterns {
		more, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return "", err
		}
		found = append(found, more...)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("the packages have %d files at %s, where one kernel was expected", len(found), strings.Join(patterns, " or "))
	}
	return found[0], nil
}
