package vm

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// archive writes a cpio archive in the "newc" format, the one that the
// kernel unpacks as its initramfs. Parent directories are added as they are
// needed. Times are zero, so the same input gives the same bytes.
type archive struct {
	w    *bufio.Writer
	seen map[string]bool
	ino  uint32
}

const (
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), seen: map[string]bool{".": true}}
}

// Dir adds an empty directory, unless it is there already.
func (a *archive) Dir(name string) error {
	name, err := entryName(name)
	if err != nil {
		return err
	}
	return a.dir(name)
}

func (a *archive) dir(name string) error {
	if a.seen[name] {
		return nil
	}
	if err := a.dir(path.Dir(name)); err != nil {
		return err
	}
	return a.entry(name, modeDir|0o755, 0, strings.NewReader(""))
}

// File adds a regular file of exactly size bytes.
func (a *archive) File(name string, perm uint32, size int64, r io.Reader) error {
	return a.leaf(name, modeRegular|perm&0o7777, size, r)
}

// Symlink adds a symbolic link.
func (a *archive) Symlink(name, target string) error {
	return a.leaf(name, modeSymlink|0o777, int64(len(target)), strings.NewReader(target))
}

func (a *archive) leaf(name string, mode uint32, size int64, r io.Reader) error {
	name, err := entryName(name)
	if err != nil {
		return err
	}
	if a.seen[name] {
		return fmt.Errorf("initramfs: %s is there twice", name)
	}
	if err := a.dir(path.Dir(name)); err != nil {
		return err
	}
	return a.entry(name, mode, size, r)
}

// Close ends the archive.
func (a *archive) Close() error {
	if err := a.entry("TRAILER!!!", 0, 0, strings.NewReader("")); err != nil {
		return err
	}
	return a.w.Flush()
}

func (a *archive) entry(name string, mode uint32, size int64, r io.Reader) error {
	if size > 0xffffffff {
		return fmt.Errorf("initramfs: %s: %d bytes do not fit into a newc entry", name, size)
	}
	a.seen[name] = true
	a.ino++
	nlink := 1
	if mode&modeDir != 0 {
		nlink = 2
	}
	// Fields: ino mode uid gid nlink mtime size dev(2) rdev(2) namesize check.
	_, err := fmt.Fprintf(a.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.ino, mode, 0, 0, nlink, 0, size, 0, 0, 0, 0, len(name)+1, 0)
	if err != nil {
		return err
	}
	const headerLen = 110
	if _, err := a.w.WriteString(name + "\x00" + padding(headerLen+int64(len(name))+1)); err != nil {
		return err
	}
	n, err := io.Copy(a.w, io.LimitReader(r, size))
	if err != nil {
		return fmt.Errorf("initramfs: %s: %w", name, err)
	}
	if n != size {
		return fmt.Errorf("initramfs: %s: %d bytes instead of %d", name, n, size)
	}
	_, err = a.w.WriteString(padding(size))
	return err
}

// padding fills up to the next multiple of four.
func padding(n int64) string { return "\x00\x00\x00"[:(4-n%4)%4] }

// entryName makes an absolute guest path relative and refuses what would
// leave the archive's root.
func entryName(name string) (string, error) {
	clean := path.Clean(strings.TrimPrefix(name, "/"))
	if strings.ContainsRune(name, 0) || clean == ".." || strings.HasPrefix(clean, "../") {
		return "", fmt.Errorf("initramfs: %q is not a path inside the guest", name)
	}
	if clean == "." {
		return clean, nil
	}
	if clean == "TRAILER!!!" {
		return "", errors.New("initramfs: TRAILER!!! is the name of the archive's end")
	}
	return clean, nil
}
