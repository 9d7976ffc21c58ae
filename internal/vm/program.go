package vm

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
)

// Program lists the files that a program of the host needs to run in the
// guest: itself and the shared libraries that the dynamic loader names. name
// is a path or is looked up in PATH; the guest has it at the same path.
func Program(name string) ([]File, error) {
	bin, err := exec.LookPath(name)
	if err != nil {
		return nil, fmt.Errorf("program for the guest: %w", err)
	}
	files := []File{{Guest: bin, Host: bin, Mode: 0o755}}
	out, err := exec.Command("ldd", bin).CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("not a dynamic executable")) {
			return files, nil
		}
		return nil, fmt.Errorf("ldd %s: %w\n%s", bin, err, out)
	}
	libs, err := parseLdd(string(out))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", bin, err)
	}
	for _, lib := range libs {
		files = append(files, File{Guest: lib, Host: lib, Mode: 0o755})
	}
	return files, nil
}

// Lines of ldd: "lib => /path (0x…)", "/loader (0x…)", "linux-vdso (0x…)",
// "lib => not found".
var lddPath = regexp.MustCompile(`(/\S+) \(0x[0-9a-f]+\)$`)

func parseLdd(out string) ([]string, error) {
	var libs []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if lib, missing := strings.CutSuffix(line, " => not found"); missing {
			return nil, fmt.Errorf("shared library %s is not on this machine", lib)
		}
		if m := lddPath.FindStringSubmatch(line); m != nil {
			libs = append(libs, m[1])
		}
	}
	return libs, nil
}
