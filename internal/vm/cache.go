package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// CacheDir is where what was downloaded is kept between runs:
// $HOLDFAST_CACHE, else holdfast in the user's cache directory.
func CacheDir() (string, error) {
	if dir := os.Getenv("HOLDFAST_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place to keep what is downloaded: %w; set HOLDFAST_CACHE", err)
	}
	return filepath.Join(dir, "holdfast"), nil
}

// once returns the directory of one thing in the cache. What is there is used
// as it is. Otherwise fill makes it, in a directory below work, which it names,
// and it is renamed into place: the cache holds whole things only. Several
// processes may ask for the same thing at once.
func once(ctx context.Context, kind, name string, fill func(work string) (string, error)) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	root := filepath.Join(cache, kind)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, filepath.Join(root, name+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()

	dir := filepath.Join(root, name)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return dir, err
	}
	work, err := os.MkdirTemp(root, "."+name+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	made, err := fill(work)
	if err != nil {
		return "", err
	}
	return dir, os.Rename(made, dir)
}

// lockFile waits for the lock until the context ends.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s, which another process holds: %w", path, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}
