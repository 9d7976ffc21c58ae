package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const (
	rootsDir = "roots"
	rootTar  = "root.tar"
)

// FetchRoot returns the tar of a Debian system's root in which nothing is installed
// but what every Debian system has. What is in the cache is used as it is. Otherwise
// mmdebstrap makes it of the packages of the suite; progress goes to logf. Several
// processes may fetch at once.
func FetchRoot(ctx context.Context, suite string, logf func(format string, args ...any)) (string, error) {
	_, err := once(ctx, rootsDir, suite, func(work string) (string, error) {
		apt, err := newApt(work, suite, "")
		if err != nil {
			return "", err
		}
		made := filepath.Join(work, "made")
		if err := os.Mkdir(made, 0o755); err != nil {
			return "", err
		}
		logf("root %s: making it of Debian's packages (below the cache directory)", suite)
		args := []string{"--variant=essential"}
		for _, dir := range []string{"doc", "man", "locale", "zoneinfo"} {
			args = append(args, "--dpkgopt=path-exclude=/usr/share/"+dir+"/*")
		}
		args = append(args,
			// That was for these packages only.
			`--customize-hook=rm "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"`,
			suite, filepath.Join(made, rootTar), apt.sources())
		if out, err := exec.CommandContext(ctx, "mmdebstrap", args...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("mmdebstrap (scripts/deps installs it): %w\n%s", err, out)
		}
		return made, nil
	})
	if err != nil {
		return "", fmt.Errorf("root %s: %w", suite, err)
	}
	return OpenRoot(suite)
}

// OpenRoot returns what FetchRoot has put into the cache, and never makes it.
func OpenRoot(suite string) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	tar := filepath.Join(cache, rootsDir, suite, rootTar)
	if _, err := os.Stat(tar); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("root %s is not in %s: tests that want it have a line \"root %s\" in testdata/guest.files, and are run by make test-host or make test-vm", suite, cache, suite)
	} else if err != nil {
		return "", fmt.Errorf("root %s: %w", suite, err)
	}
	return tar, nil
}

// RootFile is what FetchRoot has put into the cache, as a file of the guest, below
// GuestCache.
func RootFile(suite, tar string) File {
	return File{Guest: filepath.Join(GuestCache, rootsDir, suite, rootTar), Host: tar}
}
