package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests in this file boot a machine. What runs in it is this test
// binary, told by its environment to be one of these programs.
var guestPrograms = map[string]func() int{
	"write": func() int {
		fmt.Print("out 1\n")
		fmt.Fprint(os.Stderr, "err 1\n")
		fmt.Print("out 2\n")
		return 3
	},
	"pour": func() int {
		os.Stdout.Write(poured())
		return 0
	},
	"hang": func() int {
		fmt.Println("hanging")
		time.Sleep(time.Hour)
		return 0
	},
	"kill itself": func() int {
		unix.Kill(os.Getpid(), unix.SIGKILL)
		time.Sleep(time.Hour)
		return 0
	},
	"panic the kernel": func() int {
		fmt.Println("last words")
		if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
			fmt.Println(err)
		}
		time.Sleep(time.Hour)
		return 0
	},
	"power off": func() int {
		fmt.Println(unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
		return 1
	},
	"look around": func() int {
		return lookAround()
	},
	"orphan": func() int {
		return orphan()
	},
	"sleep": func() int {
		time.Sleep(50 * time.Millisecond)
		return 0
	},
}

const guestEnv = "HOLDFAST_VM_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if program := guestPrograms[os.Getenv(guestEnv)]; program != nil {
		os.Exit(program())
	}
	os.Exit(m.Run())
}

// guest returns a configuration for this binary as each of the programs.
func guest(t *testing.T, programs ...string) Config {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	files, err := Program(self)
	if err != nil {
		t.Fatal(err)
	}
	files[0].Guest = "/bin/vm.test" // it may lie in /tmp, which the guest mounts over
	cfg := Config{Kernel: "6.1", Files: files, Timeout: 2 * time.Minute, Logf: t.Logf}
	for _, p := range programs {
		if guestPrograms[p] == nil {
			t.Fatalf("no guest program %q", p)
		}
		cfg.Commands = append(cfg.Commands, Command{Path: files[0].Guest, Env: []string{guestEnv + "=" + p}})
	}
	return cfg
}

// poured is output that looks like frames, console lines and test results.
func poured() []byte {
	return bytes.Repeat([]byte("\xf5HF1x\x00\x00\x00\r\n--- FAIL\x16\x00Kernel panic - not\x03\x04\n"), 4000)
}

func lookAround() int {
	var uts unix.Utsname
	unix.Uname(&uts)
	fmt.Println("release", unix.ByteSliceToString(uts.Release[:]))
	for _, file := range []string{"/proc/sys/net/core/bpf_jit_enable", "/sys/class/net/lo/flags", "/etc/given"} {
		b, err := os.ReadFile(file)
		fmt.Println(file, strings.TrimSpace(string(b)), err)
	}
	for _, module := range []string{"veth", "bonding"} {
		_, err := os.Stat("/sys/module/" + module)
		fmt.Println(module, err)
	}
	devices, err := os.ReadDir("/sys/class/net")
	fmt.Println("devices", len(devices), err)
	return 0
}

// orphan starts a process that outlives its parent, and waits until nobody
// of that pid is left: only pid 1 can collect it.
func orphan() int {
	script := exec.Command("/proc/self/exe")
	script.Env = []string{guestEnv + "=leave a child"}
	out, err := script.Output()
	if err != nil {
		fmt.Println("leave a child:", err)
		return 1
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for range 1000 {
		if err := unix.Kill(pid, 0); errors.Is(err, unix.ESRCH) {
			fmt.Println("collected")
			return 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println("the orphan is still there")
	return 1
}

func init() {
	guestPrograms["leave a child"] = func() int {
		child := exec.Command("/proc/self/exe")
		child.Env = []string{guestEnv + "=sleep"}
		if err := child.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(child.Process.Pid)
		return 0
	}
}

func TestOutputAndExitCodesOfCommandsComeBackFromTheGuest(t *testing.T) {
	cfg := guest(t, "write", "write", "pour", "hang", "kill itself", "look around", "orphan", "write")
	var out, errOut, both, hung, seen, reaped, big bytes.Buffer
	c := cfg.Commands
	c[0].Stdout, c[0].Stderr = &out, &errOut
	c[1].Stdout, c[1].Stderr = &both, &both
	c[2].Stdout = &big
	c[3].Stdout, c[3].Timeout = &hung, time.Second
	c[5].Stdout = &seen
	c[6].Stdout = &reaped
	c[7].Path = "/no/such/program"
	cfg.Sysctls = map[string]string{"net.core.bpf_jit_enable": "0"}
	cfg.Files = append(cfg.Files, File{Guest: "/etc/given", Content: []byte("a present\n")})

	result, err := Run(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "stdout", out.String(), "out 1\nout 2\n")
	equal(t, "stderr", errOut.String(), "err 1\n")
	equal(t, "both in one", both.String(), "out 1\nerr 1\nout 2\n")
	equal(t, "output of the hanging command", hung.String(), "hanging\n")
	equal(t, "output of the orphan's parent", reaped.String(), "collected\n")
	if !bytes.Equal(big.Bytes(), poured()) {
		t.Errorf("%d bytes of output arrived changed (%d sent)", big.Len(), len(poured()))
	}
	equal(t, "what the guest sees", seen.String(), "release "+result.Release+"\n"+
		"/proc/sys/net/core/bpf_jit_enable 0 <nil>\n"+
		"/sys/class/net/lo/flags 0x9 <nil>\n"+
		"/etc/given a present <nil>\n"+
		"veth <nil>\nbonding <nil>\n"+
		"devices 2 <nil>\n") // lo, and bonding_masters, a file

	for i, want := range []string{
		0: "exit status 3", 1: "exit status 3", 2: "exit status 0", 4: "signal: killed",
		5: "exit status 0", 6: "exit status 0",
		7: "start /no/such/program: fork/exec /no/such/program: no such file or directory",
	} {
		if got := result.Statuses[i].String(); got != want && want != "" {
			t.Errorf("command %d: %s, want %s", i, got, want)
		}
	}
	if !result.Statuses[3].TimedOut {
		t.Errorf("the hanging command ended with %s, not by its timeout", result.Statuses[3])
	}
}

func TestAMachineThatFailsIsACrashWithItsConsole(t *testing.T) {
	tests := []struct {
		program string
		timeout time.Duration
		reason  string
	}{
		{"panic the kernel", 2 * time.Minute, "Kernel panic - not syncing: sysrq triggered crash"},
		{"power off", 2 * time.Minute, "the machine ended without the guest's end mark"},
		{"hang", 8 * time.Second, "not done after 8s, killed"},
	}
	for _, test := range tests {
		t.Run(test.program, func(t *testing.T) {
			cfg := guest(t, test.program, "write")
			cfg.Timeout = test.timeout
			result, err := Run(context.Background(), cfg)
			var crash *CrashError
			if !errors.As(err, &crash) {
				t.Fatalf("no crash: %v, %v", err, result.Statuses)
			}
			equal(t, "reason", crash.Reason, test.reason)
			if !strings.Contains(crash.Error(), "reboot: Power down") && !strings.Contains(crash.Error(), test.reason) {
				t.Errorf("the console is missing:\n%v", crash)
			}
			for i, s := range result.Statuses {
				if s.OK() || s.Error == "" {
					t.Errorf("command %d, which never ended, has the result %s", i, s)
				}
			}
		})
	}
}

func equal(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\ngot  %q\nwant %q", what, got, want)
	}
}
