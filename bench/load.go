package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/client"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// The load: so many clients, each of which holds a member, at so many interfaces.
const (
	loadClients    = 1000
	loadInterfaces = 100
	loadCycles     = 20_000
	loadAtOnce     = 16 // clients that attach and detach again and again
)

// loadResult is what the daemon took.
type loadResult struct {
	kernel string
	engine arbiter.Engine
	// attach is how long each client waited for its member, and attached how long all
	// of them took.
	attach   []time.Duration
	attached time.Duration
	list     []time.Duration
	// resident and peak are the daemon's memory in KiB, with all clients; idle is the
	// share of a processor that it takes then.
	resident, peak int
	idle           float64
	cycles         time.Duration
	before, after  possessions
}

// possessions are what must not grow.
type possessions struct {
	descriptors, programs, maps, links, threads, resident int
}

// underLoad runs in a process of its own, in new namespaces.
func underLoad(holdfast, scratch string) (r *loadResult, err error) {
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return nil, err
	}
	r = &loadResult{kernel: unix.ByteSliceToString(uname.Release[:])}
	w, err := newWorld(loadInterfaces)
	if err != nil {
		return nil, err
	}
	d, err := startDaemon(holdfast, scratch)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	file, err := object.Read("pass.o", bytes.NewReader(bpfprog.ELF("pass")))
	if err != nil {
		return nil, err
	}
	if err := r.cycle(w, d, file); err != nil {
		return nil, err
	}
	return r, r.hold(w, d, file)
}

// daemonProcess is the daemon under load.
type daemonProcess struct {
	*exec.Cmd
	socket string
}

func startDaemon(holdfast, scratch string, flags ...string) (*daemonProcess, error) {
	d := &daemonProcess{socket: filepath.Join(scratch, "holdfast.sock")}
	state := filepath.Join(scratch, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("bpf", state, "bpf", 0, ""); err != nil {
		return nil, fmt.Errorf("mount a bpffs: %w", err)
	}
	d.Cmd = exec.Command(holdfast, append([]string{"daemon", "--socket", d.socket, "--bpffs", state, "--config", scratch, "--log-level", "info"}, flags...)...)
	d.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	says, err := d.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := d.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(says)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "msg=ready") {
			go func() {
				for lines.Scan() {
					if strings.Contains(lines.Text(), "msg=event") {
						continue // which are expected
					}
					if strings.Contains(lines.Text(), "level=WARN") || strings.Contains(lines.Text(), "level=ERROR") {
						fmt.Fprintln(os.Stderr, lines.Text())
					}
				}
			}()
			return d, nil
		}
		fmt.Fprintln(os.Stderr, lines.Text())
	}
	return nil, errors.New("the daemon ended")
}

func (d *daemonProcess) stop() error {
	if err := d.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	return d.Wait()
}

// status reads a number of /proc/PID/status.
func (d *daemonProcess) status(key string) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	return 0
}

// processor is how long the daemon had a processor.
func (d *daemonProcess) processor() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const utime, stime, ticks = 14 - 3, 15 - 3, 100
	u, _ := strconv.Atoi(fields[utime])
	s, _ := strconv.Atoi(fields[stime])
	return time.Duration(u+s) * time.Second / ticks
}

func (d *daemonProcess) possessions() (possessions, error) {
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.Process.Pid))
	if err != nil {
		return possessions{}, err
	}
	p := possessions{descriptors: len(names), threads: d.status("Threads"), resident: d.status("VmRSS")}
	links, err := kernel.XDPLinks()
	if err != nil {
		return p, err
	}
	p.links = len(links)
	for id := uint32(0); ; p.maps++ {
		if id, err = kernel.NextMapID(id); err != nil {
			break
		}
	}
	for id := uint32(0); ; p.programs++ {
		if id, err = kernel.NextProgramID(id); err != nil {
			break
		}
	}
	return p, nil
}

func (d *daemonProcess) client() (*client.Client, error) {
	return client.Open(context.Background(), client.Options{Socket: d.socket, Patience: time.Minute})
}

func addition(h *xdp.Hook, name string, file *object.Object, lifetime owned.Lifetime) arbiter.Transaction {
	return arbiter.Transaction{Hook: h, Changes: []arbiter.Change{{Change: owned.Change{Op: owned.Add, Name: name, Lifetime: lifetime}, Object: file}}}
}

// cycle attaches and detaches again and again.
func (r *loadResult) cycle(w *world, d *daemonProcess, file *object.Object) error {
	settle := func() { time.Sleep(2 * time.Second) } // the kernel frees what was freed
	cycles := func(n int) error {
		var next atomic.Int64
		errs := make(chan error, loadAtOnce)
		var all sync.WaitGroup
		for i := range loadAtOnce {
			all.Go(func() {
				c, err := d.client()
				if err != nil {
					errs <- err
					return
				}
				defer c.Close()
				for next.Add(1) <= int64(n) {
					applied, err := c.Apply(context.Background(), addition(w.hooks[i], "m", file, owned.Held))
					if err == nil {
						h := applied.Held[0]
						err = errors.Join(h.Remove(context.Background(), w.hooks[i]), h.Close())
					}
					if err != nil {
						errs <- err
						return
					}
				}
			})
		}
		all.Wait()
		close(errs)
		return <-errs
	}
	if err := cycles(loadCycles / 20); err != nil { // what grows once has grown
		return err
	}
	settle()
	var err error
	if r.before, err = d.possessions(); err != nil {
		return err
	}
	begin := time.Now()
	if err := cycles(loadCycles); err != nil {
		return err
	}
	r.cycles = time.Since(begin)
	settle()
	r.after, err = d.possessions()
	return err
}

// hold has all clients hold a member each.
func (r *loadResult) hold(w *world, d *daemonProcess, file *object.Object) error {
	clients := make([]*client.Client, loadClients)
	handles := make([]arbiter.Handle, loadClients)
	defer func() {
		for i, c := range clients {
			if handles[i] != nil {
				handles[i].Close()
			}
			if c != nil {
				c.Close()
			}
		}
	}()
	var err error
	for i := range clients {
		if clients[i], err = d.client(); err != nil {
			return err
		}
	}
	r.attach = make([]time.Duration, loadClients)
	var next atomic.Int64
	errs := make(chan error, loadAtOnce)
	var all sync.WaitGroup
	begin := time.Now()
	for range loadAtOnce {
		all.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= loadClients {
					return
				}
				start := time.Now()
				applied, err := clients[i].Apply(context.Background(), addition(w.hooks[i%loadInterfaces], fmt.Sprintf("m%d", i), file, owned.Held))
				if err != nil {
					errs <- err
					return
				}
				r.attach[i], handles[i] = time.Since(start), applied.Held[0]
			}
		})
	}
	all.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return err
	}
	r.attached = time.Since(begin)
	st, err := clients[0].At(w.hooks[0])
	if err != nil {
		return err
	}
	r.engine = st.Chain.Engine
	for range 50 {
		start := time.Now()
		found, err := clients[0].List(context.Background(), []*xdp.Namespace{w.ns}, false)
		if err != nil {
			return err
		}
		members := 0
		for _, s := range found {
			members += len(s.Chain.Members)
		}
		if members != loadClients {
			return fmt.Errorf("%d members are listed", members)
		}
		r.list = append(r.list, time.Since(start))
	}
	time.Sleep(8 * time.Second) // until it has come to rest
	const idle = 10 * time.Second
	busy := d.processor()
	time.Sleep(idle)
	r.idle = float64(d.processor()-busy) / float64(idle)
	r.resident, r.peak = d.status("VmRSS"), d.status("VmHWM")
	return nil
}

func quantile(all []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (r *loadResult) print(b *bytes.Buffer) {
	fmt.Fprintf(b, `# The daemon under load

`+"`go run ./bench -only load`"+` wrote this file; run it again, as root, for another machine.
Here it was Linux %s, where chains are %s.

%d clients hold a member each, at %d interfaces; %d of them attach at a time.

| | to reach | measured |
|---|---|---|
| attached in a second | | %.0f |
| a client waits for its member, median | | %s |
| a client waits for its member, 99th percentile | | %s |
| list of all members, median | 20 ms | %s |
| memory of the daemon, with all clients | 60 MB | %.1f MB (%.1f MB at most) |
| processor while nothing happens | 1 %% | %.2f %% |

Then %d times a member is attached and detached, by %d clients at once, %.0f in a
second. What the daemon and the kernel have before and afterwards:

| | before | after |
|---|---|---|
| descriptors of the daemon | %d | %d |
| threads of the daemon | %d | %d |
| memory of the daemon, MB | %.1f | %.1f |
| programs | %d | %d |
| maps | %d | %d |
| links | %d | %d |
`, r.kernel, r.engine, loadClients, loadInterfaces, loadAtOnce, loadClients/r.attached.Seconds(), duration(float64(quantile(r.attach, 0.5))), duration(float64(quantile(r.attach, 0.99))),
		duration(float64(quantile(r.list, 0.5))), float64(r.resident)/1000, float64(r.peak)/1000, 100*r.idle,
		loadCycles, loadAtOnce, loadCycles/r.cycles.Seconds(),
		r.before.descriptors, r.after.descriptors, r.before.threads, r.after.threads, float64(r.before.resident)/1000, float64(r.after.resident)/1000,
		r.before.programs, r.after.programs, r.before.maps, r.after.maps, r.before.links, r.after.links)
}

// loadHere measures in the namespaces of this process, and prints the document.
func loadHere(holdfast, scratch string, out io.Writer) error {
	if err := mounts(); err != nil {
		return err
	}
	r, err := underLoad(holdfast, scratch)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	r.print(&b)
	_, err = b.WriteTo(out)
	return err
}

// loadReport measures in namespaces of its own, and writes the document.
func loadReport(docs, holdfast, directory string) error {
	runtime.LockOSThread() // the child dies with the thread that started it
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", "-guest", "load", "-holdfast", holdfast, "-scratch", directory)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	output, err := cmd.Output()
	if err != nil {
		return err
	}
	fmt.Printf("%s", output)
	return os.WriteFile(filepath.Join(docs, "load.md"), output, 0o644)
}
