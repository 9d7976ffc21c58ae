package vm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestTheArchiveIsNewcAsTheKernelReadsIt(t *testing.T) {
	var b bytes.Buffer
	a := newArchive(&b)
	for _, err := range []error{
		a.File("/bin/sh", 0o755, 5, strings.NewReader("hello")),
		a.Symlink("bin/x", "sh"),
		a.Dir("/bin"),
		a.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	header := func(ino, mode, nlink, size, namesize int) string {
		return fmt.Sprintf("070701%08X%08X0000000000000000%08X00000000%08X00000000000000000000000000000000%08X00000000",
			ino, mode, nlink, size, namesize)
	}
	want := header(1, 0o040755, 2, 0, 4) + "bin\x00\x00\x00" +
		header(2, 0o100755, 1, 5, 7) + "bin/sh\x00\x00\x00\x00" + "hello\x00\x00\x00" +
		header(3, 0o120777, 1, 2, 6) + "bin/x\x00" + "sh\x00\x00" +
		header(4, 0, 1, 0, 11) + "TRAILER!!!\x00\x00\x00\x00"
	if b.String() != want {
		t.Errorf("got\n%q\nwant\n%q", b.String(), want)
	}
	if b.Len()%4 != 0 {
		t.Errorf("%d bytes: entries must begin at multiples of four", b.Len())
	}
}

func TestWhatCannotBeInTheArchiveIsRefused(t *testing.T) {
	tests := []struct {
		name  string
		write func(a *archive) error
		err   string
	}{
		{"a path that leaves the root", func(a *archive) error { return a.Symlink("../etc/x", "y") }, "not a path inside"},
		{"a name with a zero byte", func(a *archive) error { return a.Dir("a\x00b") }, "not a path inside"},
		{"the end's name", func(a *archive) error { return a.Dir("TRAILER!!!") }, "TRAILER"},
		{"a file that is shorter than said", func(a *archive) error { return a.File("f", 0o644, 9, strings.NewReader("short")) }, "5 bytes instead of 9"},
		{"a file twice", func(a *archive) error {
			_ = a.Symlink("f", "x")
			return a.Symlink("/f", "y")
		}, "twice"},
		{"a file too long", func(a *archive) error { return a.File("f", 0o644, 1<<33, strings.NewReader("")) }, "do not fit"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := test.write(newArchive(&b)); err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%v, want %q", err, test.err)
			}
		})
	}
}

func TestAFileBelowAMountPointIsRefused(t *testing.T) {
	for guest, refused := range map[string]bool{
		"/tmp/x": true, "/tmp": true, "/run/a/b": true, "/dev/null": true, "/tmpfile": false, "/bin/tmp": false,
	} {
		var b bytes.Buffer
		err := addFile(newArchive(&b), File{Guest: guest, Content: []byte("x")})
		if (err != nil) != refused {
			t.Errorf("%s: %v", guest, err)
		}
	}
}
