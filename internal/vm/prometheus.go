package vm

import (
	"context"
	"fmt"
	"path/filepath"
)

// prometheusSuite is where Debian's prometheus and promtool are taken from. They need
// nothing but a libc that is not older.
const prometheusSuite = "bookworm"

// FetchPrometheus returns the directory of prometheus and promtool. Like xdp-loader they
// are downloaded once and unpacked, not installed: to install them starts a server.
func FetchPrometheus(ctx context.Context, logf func(format string, args ...any)) (dir string, err error) {
	dir, err = once(ctx, "tools", "prometheus", func(work string) (string, error) {
		apt, err := newApt(work, prometheusSuite, "")
		if err != nil {
			return "", err
		}
		logf("prometheus: downloading it from %s (unpacked below the cache directory, not installed)", prometheusSuite)
		if _, err := apt.run(ctx, "apt-get", "update"); err != nil {
			return "", err
		}
		root := filepath.Join(work, "root")
		return root, apt.unpack(ctx, root, "prometheus")
	})
	if err != nil {
		return "", fmt.Errorf("prometheus: %w", err)
	}
	return filepath.Join(dir, "usr/bin"), nil
}
