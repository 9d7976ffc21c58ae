package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/internal/bpfprog"
	"github.com/holdfast-bpf/holdfast/internal/vm"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/packaging"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// What the dashboard's picture shows: so long, scraped so often, with rates over so much.
const (
	shown       = 3 * time.Minute
	scrapeEvery = 2 * time.Second
	rateOver    = "16s"
)

// Where the daemon and Prometheus are in the picture's network namespace.
const (
	metricsAddress    = "127.0.0.1:9750"
	prometheusAddress = "127.0.0.1:9090"
)

// dashboard draws the picture of the dashboard, in namespaces of its own.
func dashboard(docs, holdfast, directory string) error {
	tools, err := vm.FetchPrometheus(context.Background(), func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the child dies with the thread that started it
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", "-guest", "dashboard", "-holdfast", holdfast, "-scratch", directory, "-docs", docs, "-tools", tools)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	return cmd.Run()
}

// scene is what happens in the picture.
type scene struct {
	*world
	*daemonProcess
	holdfast string
	object   *object.Object
	file     string // the object's
	began    time.Time
	failed   chan error
}

// dashboardHere lets things happen to a daemon, and draws what Prometheus makes of them.
func dashboardHere(docs, holdfast, tools, scratch string) (err error) {
	// Users without privilege reach the command, the socket and the object.
	if err := os.Chmod(scratch, 0o755); err != nil {
		return err
	}
	w, err := newWorld(6)
	if err != nil {
		return err
	}
	if err := w.up(); err != nil {
		return err
	}
	s := &scene{world: w, holdfast: holdfast, file: filepath.Join(scratch, "pass.o"), failed: make(chan error, 100)}
	if s.object, err = object.Read("pass.o", bytes.NewReader(bpfprog.ELF("pass"))); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(scratch, "attachments.d"), 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"policy.yaml": scenePolicy, "pass.o": string(bpfprog.ELF("pass")),
		"attachments.d/v3.yaml": "version: 1\nhooks:\n- interface: v3\n  members:\n  - {name: firewall, object: " + s.file + "}\n",
	} {
		if err := os.WriteFile(filepath.Join(scratch, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	stopCounting, err := countRuns()
	if err != nil {
		return err
	}
	defer stopCounting()
	if s.daemonProcess, err = startDaemon(holdfast, scratch, "--metrics", metricsAddress); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	stop, err := startPrometheus(tools, scratch)
	if err != nil {
		return err
	}
	defer stop()
	s.play()
	close(s.failed)
	for e := range s.failed {
		err = errors.Join(err, e)
	}
	if err != nil {
		return err
	}
	return drawDashboard(filepath.Join(docs, "dashboard.svg"), s.began, s.began.Add(shown))
}

const scenePolicy = `version: 1
rules:
- name: root
  match: {uid: [0]}
  allow: {verbs: [attach, replace, detach, set, lock, unlock, adopt, claim, reload], exclusive: true, others: true}
- name: uplink
  match: {interface: [v0]}
  deny: true
- name: services
  match: {uid: [1000-1009]}
  allow: {verbs: [attach, detach]}
`

// up sets all interfaces up, so that packets reach the programs.
func (w *world) up() error {
	lo, err := w.conn.Device("lo")
	if err != nil {
		return err
	}
	if err := w.conn.SetUp(lo.Index, true); err != nil {
		return err
	}
	for _, name := range w.names {
		near, err := w.conn.Device(name)
		if err != nil {
			return err
		}
		far, err := w.farConn.Device(name)
		if err != nil {
			return err
		}
		if err := errors.Join(w.conn.SetUp(near.Index, true), w.farConn.SetUp(far.Index, true)); err != nil {
			return err
		}
	}
	return nil
}

// countRuns has the kernel count what programs take, as an administrator would.
func countRuns() (stop func(), err error) {
	const setting = "/proc/sys/kernel/bpf_stats_enabled"
	before, err := os.ReadFile(setting)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(setting, []byte("1"), 0); err != nil {
		return nil, err
	}
	return func() { _ = os.WriteFile(setting, before, 0) }, nil
}

// startPrometheus has it scrape the daemon, and returns when it answers.
func startPrometheus(tools, scratch string) (stop func(), err error) {
	config := filepath.Join(scratch, "prometheus.yml")
	text := fmt.Sprintf(`global: {scrape_interval: %s}
scrape_configs:
- job_name: holdfast
  static_configs:
  - targets: [%q]
`, scrapeEvery, metricsAddress)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(tools, "prometheus"), "--config.file="+config, "--storage.tsdb.path="+filepath.Join(scratch, "tsdb"),
		"--web.listen-address="+prometheusAddress, "--log.level=error")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	for range 300 {
		r, err := http.Get("http://" + prometheusAddress + "/-/ready")
		if err == nil {
			r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return stop, nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	stop()
	return nil, errors.New("prometheus does not answer")
}

// play lets it all happen.
func (s *scene) play() {
	s.began = time.Now()
	var all sync.WaitGroup
	for _, act := range []func() error{
		s.permanent, s.lookers, s.denied, s.conflicts, s.force, s.foreign, s.traffic,
	} {
		all.Go(func() {
			if err := act(); err != nil {
				s.failed <- err
			}
		})
	}
	for i := range 12 {
		all.Go(func() {
			if err := s.holder(i); err != nil {
				s.failed <- err
			}
		})
	}
	for i := range 3 {
		all.Go(func() { s.watcher(i) })
	}
	all.Wait()
}

// until waits until so many seconds have passed.
func (s *scene) until(seconds float64) {
	time.Sleep(time.Until(s.began.Add(time.Duration(seconds * float64(time.Second)))))
}

// during calls f again and again, about so often in a second.
func (s *scene) during(from, to, often float64, f func() error) error {
	s.until(from)
	for time.Since(s.began) < time.Duration(to*float64(time.Second)) {
		if err := f(); err != nil {
			return err
		}
		time.Sleep(time.Duration((0.5 + rand.Float64()) / often * float64(time.Second)))
	}
	return nil
}

// permanent is an administrator who attaches three members, and has new versions.
func (s *scene) permanent() error {
	c, err := s.client()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := context.Background()
	s.until(4)
	for i, name := range []string{"ddos-filter", "sampler", "balancer"} {
		for v := range 2 + i%2 {
			if _, err := c.Apply(ctx, addition(s.hooks[v], name, s.object, owned.Permanent)); err != nil {
				return err
			}
		}
		time.Sleep(3 * time.Second)
	}
	return s.during(20, 175, 0.25, func() error {
		t := arbiter.Transaction{Hook: s.hooks[0], Changes: []arbiter.Change{{Change: owned.Change{Op: owned.Replace, Name: "ddos-filter"}, Object: s.object}}}
		applied, err := c.Apply(ctx, t)
		if err == nil && applied.Acknowledge != nil {
			err = applied.Acknowledge()
		}
		return err
	})
}

// holder is a service that comes with a member and goes with it.
func (s *scene) holder(i int) error {
	s.until(18 + 4*float64(i) + 2*rand.Float64())
	c, err := s.client()
	if err != nil {
		return err
	}
	defer c.Close()
	applied, err := c.Apply(context.Background(), addition(s.hooks[i%3], fmt.Sprintf("service-%d", i), s.object, owned.Held))
	if err != nil {
		return err
	}
	defer applied.Held[0].Close()
	s.until(110 + 5*float64((i*7)%12) + 2*rand.Float64())
	return nil
}

// lookers list what there is, as monitoring does.
func (s *scene) lookers() error {
	c, err := s.client()
	if err != nil {
		return err
	}
	defer c.Close()
	return s.during(2, 178, 1, func() error {
		busy := 2 + 2*math.Sin(time.Since(s.began).Seconds()/14)
		for range int(busy) + 1 {
			if _, err := c.List(context.Background(), []*xdp.Namespace{s.ns}, false); err != nil {
				return err
			}
			if _, err := c.At(s.hooks[rand.IntN(3)]); err != nil {
				return err
			}
		}
		return nil
	})
}

// as runs the command as a user without privilege, and returns what it says.
func (s *scene) as(uid uint32, args ...string) *exec.Cmd {
	cmd := exec.Command(s.holdfast, append([]string{"--socket", s.socket}, args...)...)
	cmd.SysProcAttr = &unix.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: unix.SIGKILL}
	return cmd
}

// watcher is somebody who follows events for a while.
func (s *scene) watcher(i int) {
	s.until(8 + 9*float64(i))
	cmd := s.as(1000+uint32(i), "watch")
	if err := cmd.Start(); err != nil {
		s.failed <- err
		return
	}
	s.until(150 + 8*float64(i))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// denied are users who may not what they want: one was not told of a rule, and one of
// whom no rule knows.
func (s *scene) denied() error {
	refused := func(uid uint32, iface string) func() error {
		return func() error {
			out, err := s.as(uid, "attach", iface, s.file, "--name", "mine").CombinedOutput()
			if err == nil || !bytes.Contains(out, []byte("policy explain")) {
				return fmt.Errorf("user %d at %s: %w: %s", uid, iface, err, out)
			}
			return nil
		}
	}
	var second error
	var both sync.WaitGroup
	both.Go(func() { second = s.during(85, 120, 1, refused(2000, "v1")) })
	err := errors.Join(s.during(45, 70, 1.5, refused(1001, "v0")), s.during(130, 142, 2, refused(1001, "v0")))
	both.Wait()
	return errors.Join(err, second)
}

// conflicts are of two who want the same name, of one who has seen another version, and
// of one who wants what somebody else attached by netlink.
func (s *scene) conflicts() error {
	c, err := s.client()
	if err != nil {
		return err
	}
	defer c.Close()
	conflict := func(t arbiter.Transaction, want error) func() error {
		return func() error {
			if _, err := c.Apply(context.Background(), t); !errors.Is(err, want) {
				return fmt.Errorf("no conflict: %w", err)
			}
			return nil
		}
	}
	name := addition(s.hooks[0], "sampler", s.object, owned.Permanent)
	version := addition(s.hooks[1], "new", s.object, owned.Permanent)
	version.Expect = new(uint64(1 << 40))
	return errors.Join(
		s.during(35, 62, 1.2, conflict(name, owned.ErrExists)),
		s.during(75, 105, 0.8, conflict(version, owned.ErrGeneration)),
		s.during(118, 150, 1, conflict(addition(s.hooks[5], "mine", s.object, owned.Permanent), xdp.ErrConflict)),
	)
}

// foreign attaches by netlink, which nobody holds.
func (s *scene) foreign() error {
	s.until(28)
	programs, err := load(1)
	if err != nil {
		return err
	}
	defer closeAll(programs)
	if err := s.hooks[5].Attach(programs[0], xdp.Empty); err != nil {
		return err
	}
	s.until(162)
	return s.hooks[5].Detach(xdp.Any)
}

// force is another root, who detaches what is declared, which is restored, and what is
// not, which is not until somebody attaches it anew.
func (s *scene) force() error {
	detach := func(h *xdp.Hook) error {
		state, err := h.Query()
		if err != nil {
			return err
		}
		at := state.At(xdp.Native)
		if at == nil {
			return nil // it was quicker
		}
		link, err := xdp.OpenID(at.LinkID)
		if err != nil {
			return err
		}
		defer link.Close()
		return link.Detach()
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	defer c.Close()
	add := addition(s.hooks[4], "accounting", s.object, owned.Permanent)
	s.until(12)
	if _, err := c.Apply(context.Background(), add); err != nil {
		return err
	}
	for _, at := range []float64{40, 66, 125} {
		s.until(at)
		if err := detach(s.hooks[3]); err != nil {
			return err
		}
	}
	s.until(135)
	if err := detach(s.hooks[4]); err != nil {
		return err
	}
	s.until(158)
	// The first finds out what has happened.
	if _, err := c.Apply(context.Background(), add); err == nil {
		return nil
	}
	_, err = c.Apply(context.Background(), add)
	return err
}

// traffic sends packets through the programs.
func (s *scene) traffic() error {
	var sockets []int
	var to []unix.SockaddrLinklayer
	err := s.far.Do(func() error {
		for _, name := range s.names[:5] {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			sockets = append(sockets, fd)
			d, err := s.farConn.Device(name)
			if err != nil {
				return err
			}
			to = append(to, unix.SockaddrLinklayer{Ifindex: d.Index})
		}
		return nil
	})
	defer func() {
		for _, fd := range sockets {
			unix.Close(fd)
		}
	}()
	if err != nil {
		return err
	}
	// Of a type that nobody takes, to nobody.
	frame := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5}, make([]byte, 50)...)
	return s.during(5, 178, 50, func() error {
		for i, fd := range sockets {
			for range 20 * (i + 1) {
				if err := unix.Sendto(fd, frame, 0, &to[i]); err != nil && !errors.Is(err, unix.ENOBUFS) {
					return os.NewSyscallError("sendto", err)
				}
			}
		}
		return nil
	})
}

// series is a line of a panel: values by seconds from the beginning.
type series struct {
	name   string
	points [][2]float64
}

// query asks Prometheus for what a target draws.
func query(t packaging.Target, from, to time.Time) ([]series, error) {
	v := url.Values{"query": {t.Query(".+", rateOver)}, "start": {seconds(from)}, "end": {seconds(to)}, "step": {"1"}}
	r, err := http.Get("http://" + prometheusAddress + "/api/v1/query_range?" + v.Encode())
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	var reply struct {
		Error string `json:"error"`
		Data  struct {
			Result []struct {
				Metric map[string]string `json:"metric"`
				Values [][2]any          `json:"values"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := json.NewDecoder(r.Body).Decode(&reply); err != nil {
		return nil, err
	}
	if reply.Error != "" {
		return nil, fmt.Errorf("%s: %s", t.Expr, reply.Error)
	}
	var all []series
	for _, one := range reply.Data.Result {
		s := series{name: t.Legend}
		for label, value := range one.Metric {
			s.name = strings.ReplaceAll(s.name, "{{"+label+"}}", value)
		}
		for _, v := range one.Values {
			at, ok := v[0].(float64)
			text, isText := v[1].(string)
			value, err := strconv.ParseFloat(text, 64)
			if !ok || !isText || err != nil {
				return nil, fmt.Errorf("prometheus says %v", v)
			}
			if !math.IsNaN(value) && !math.IsInf(value, 0) {
				s.points = append(s.points, [2]float64{at - float64(from.UnixMilli())/1000, value})
			}
		}
		if len(s.points) > 0 {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b series) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

func seconds(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }
