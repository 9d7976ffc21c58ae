package crash

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kerneltest"
	"github.com/holdfast-bpf/holdfast/internal/netns"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	commands := kerneltest.Commands{}
	for name, operation := range map[string]func(dir string) error{
		"change":    change,
		"exit":      exit,
		"exec":      execute,
		"fork":      fork,
		"outlive":   outlive,
		"interrupt": interrupt,
		"inherit":   inherit,
		"hang":      func(string) error { select {} },
	} {
		commands[name] = func([]string) int {
			makeNoise()
			if err := operation(os.Getenv("DIR")); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return 0
		}
	}
	kerneltest.Main(m, commands)
}

// makeNoise keeps the runtime of a target busy with what must never count:
// threads, memory, garbage collection.
func makeNoise() {
	go func() {
		keep := make([][]byte, 64)
		for i := 0; ; i++ {
			keep[i%len(keep)] = make([]byte, 1<<12)
			runtime.Gosched()
		}
	}()
	go func() {
		for {
			runtime.GC()
			time.Sleep(100 * time.Microsecond)
		}
	}()
}

// change makes changes of each kind, with queries between them. It starts by
// making a map, which has the library probe the kernel first.
func change(dir string) error {
	array := &ebpf.MapSpec{Name: "crash", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	probe, err := ebpf.NewMap(array)
	if err != nil {
		return err
	}
	if err := probe.Close(); err != nil {
		return err
	}

	if err := os.Mkdir(dir+"/hook", 0o700); err != nil {
		return err
	}
	lock, err := os.Open(dir + "/hook")
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	m, err := ebpf.NewMap(array)
	if err != nil {
		return err
	}
	if err := m.Pin(dir + "/hook/map"); err != nil {
		return err
	}
	if err := m.Update(uint32(0), uint32(1), ebpf.UpdateAny); err != nil {
		return err
	}
	var value uint32
	if err := m.Lookup(uint32(0), &value); err != nil {
		return err
	}
	if err := m.Close(); err != nil {
		return err
	}
	ns, err := netns.Open(os.Getenv("NETNS"))
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := ns.Do(askLoopback); err != nil {
		return err
	}
	if err := ns.Do(setLoopbackDown); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, dir+"/hook/map", int(lock.Fd()), "moved", unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	if err := os.Mkdir(dir+"/hook", 0o700); err == nil {
		return fmt.Errorf("made %s/hook twice", dir)
	}
	if err := os.Remove(dir + "/hook/moved"); err != nil {
		return err
	}
	_, err = fmt.Println("done")
	return err
}

// askLoopback asks for the loopback interface, by sendto.
func askLoopback() error {
	return request(unix.RTM_GETLINK, func(socket int, message []byte, kernel unix.Sockaddr) error {
		return unix.Sendto(socket, message, 0, kernel)
	})
}

// setLoopbackDown sets the loopback interface down, by sendmsg.
func setLoopbackDown() error {
	return request(unix.RTM_SETLINK, func(socket int, message []byte, kernel unix.Sockaddr) error {
		_, err := unix.SendmsgN(socket, message, nil, kernel, 0)
		return err
	})
}

// request sends a netlink request about the loopback interface, which asks for
// IFF_UP to be cleared if it is one that sets something.
func request(typ uint16, send func(socket int, message []byte, kernel unix.Sockaddr) error) error {
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	m := struct {
		header unix.NlMsghdr
		link   unix.IfInfomsg
	}{
		unix.NlMsghdr{Type: typ, Flags: unix.NLM_F_REQUEST},
		unix.IfInfomsg{Index: 1, Change: unix.IFF_UP},
	}
	m.header.Len = uint32(unsafe.Sizeof(m))
	b := unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m))
	return send(socket, b, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// exit ends in the middle of things, with exit code 7.
func exit(dir string) error {
	if err := os.Mkdir(dir+"/exit", 0o700); err != nil {
		return err
	}
	os.Exit(7)
	return nil
}

// execute goes on as exit, from a thread that is not the first one.
func execute(dir string) error {
	errs := make(chan error)
	runtime.LockOSThread() // the main goroutine stays on the first thread
	go func() {
		runtime.LockOSThread()
		errs <- syscall.Exec("/proc/self/exe", os.Args[:1], []string{kerneltest.CommandEnv("exit"), "DIR=" + dir})
	}()
	return <-errs
}

// fork starts a process that outlives it and prints its id.
func fork(string) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), kerneltest.CommandEnv("outlive"), fmt.Sprintf("PARENT=%d", os.Getpid()))
	if err := cmd.Start(); err != nil {
		return err
	}
	_, err := fmt.Println(cmd.Process.Pid)
	return err
}

// outlive waits for its parent to be gone, and then makes a change.
func outlive(dir string) error {
	for strconv.Itoa(os.Getppid()) == os.Getenv("PARENT") {
		time.Sleep(time.Millisecond)
	}
	if err := os.Mkdir(dir+"/outlived", 0o700); err != nil {
		return err
	}
	select {}
}

// interrupt has a thread wait for a lock while signals interrupt it.
func interrupt(dir string) error {
	held, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer held.Close()
	wanted, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer wanted.Close()
	if err := unix.Flock(int(held.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	tid, locked := make(chan int), make(chan error)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		locked <- unix.Flock(int(wanted.Fd()), unix.LOCK_EX)
	}()
	waiter := <-tid
	for range 50 {
		if err := unix.Tgkill(os.Getpid(), waiter, unix.SIGURG); err != nil {
			return err
		}
		runtime.Gosched()
		unix.Nanosleep(&unix.Timespec{Nsec: 100_000}, nil)
	}
	if err := unix.Flock(int(held.Fd()), unix.LOCK_UN); err != nil {
		return err
	}
	return <-locked
}

// inherit gives up a lock that it has inherited.
func inherit(string) error {
	return unix.Flock(3, unix.LOCK_UN)
}
