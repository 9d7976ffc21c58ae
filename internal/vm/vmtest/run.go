package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-bpf/holdfast/internal/vm"
)

const (
	// At most this many environments run at once, of which each takes up to
	// one processor: tests wait for the kernel as often as they compute, so
	// that one more than a small machine has processors is not too many.
	environmentsAtOnce = 3
	compilersAtOnce    = 2
)

// runner holds what all environments of a run share.
type runner struct {
	options
	kernel, pure []*testPackage
	skips        skipList
	test2json    string // path of the tool
	out          *printer
}

// run does what the options say. It returns false if a test failed, and an
// error if there is no saying.
func run(ctx context.Context, opts options, stdout io.Writer) (ok bool, err error) {
	r := &runner{options: opts, out: &printer{w: stdout, stream: len(opts.kernels) == 1}}
	if r.kernel, r.pure, err = listPackages(ctx, opts.patterns); err != nil {
		return false, err
	}
	if r.skips, err = readSkips(ctx); err != nil {
		return false, err
	}
	tool, err := goTool(ctx, "tool", "-n", "test2json")
	if err != nil {
		return false, err
	}
	r.test2json = strings.TrimSpace(string(tool))
	bin, err := os.MkdirTemp("", "holdfast-tests-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(bin)
	if err := compile(ctx, r.needed(), bin); err != nil {
		return false, err
	}
	for _, p := range r.needed() {
		if err := p.fetch(ctx, bin); err != nil {
			return false, err
		}
	}

	reports := r.runAll(ctx)
	for _, rep := range reports {
		if rep.Problem != "" {
			fmt.Fprintf(stdout, "FAIL\t%s: %s\n", rep.Environment, rep.Problem)
		}
	}
	if err := summary(stdout, reports); err != nil {
		return false, err
	}
	if opts.report != "" {
		if err := writeReport(opts.report, reports); err != nil {
			return false, err
		}
	}
	return !slices.ContainsFunc(reports, func(rep *environmentReport) bool { return rep.Failed > 0 }), nil
}

func readSkips(ctx context.Context) (skipList, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(root, "internal/vm/skips.txt")
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	skips, err := parseSkips(f, environments())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return skips, nil
}

// packages are those whose tests run in an environment.
func (r *runner) packages(environment string) []*testPackage {
	if environment == pureTests {
		return r.pure
	}
	var packages []*testPackage
	for _, p := range r.kernel {
		if p.runsOn(environment) {
			packages = append(packages, p)
		}
	}
	return packages
}

// needed are the packages of all environments of this run.
func (r *runner) needed() []*testPackage {
	var all []*testPackage
	for _, environment := range r.kernels {
		for _, p := range r.packages(environment) {
			if !slices.Contains(all, p) {
				all = append(all, p)
			}
		}
	}
	return all
}

func compile(ctx context.Context, packages []*testPackage, dir string) error {
	errs := make([]error, len(packages))
	inParallel(compilersAtOnce, len(packages), func(i int) {
		errs[i] = packages[i].compile(ctx, dir)
	})
	return errors.Join(errs...)
}

// inParallel calls f(0) to f(n-1), at most limit at once.
func inParallel(limit, n int, f func(i int)) {
	slots := make(chan struct{}, limit)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}

// runAll runs every environment: the pure tests first, for they fail soonest,
// then the kernels, the longest first.
func (r *runner) runAll(ctx context.Context) []*environmentReport {
	reports := make([]*environmentReport, len(r.kernels))
	var kernels []int
	for i, environment := range r.kernels {
		if environment == pureTests {
			reports[i] = r.runOne(ctx, environment)
		} else {
			kernels = append(kernels, i)
		}
	}
	slices.SortFunc(kernels, func(i, j int) int { return startsAt(r.kernels[i]) - startsAt(r.kernels[j]) })
	inParallel(environmentsAtOnce, len(kernels), func(n int) {
		i := kernels[n]
		reports[i] = r.runOne(ctx, r.kernels[i])
	})
	return reports
}

// startsAt is an environment's place in the order in which they start: first the
// one that runs most in full, then the newest kernel, which can do more, and so on.
// The machine's own, where all goes fastest, is last.
func startsAt(environment string) int {
	if environment == vm.Full {
		return -len(vm.Kernels())
	}
	return -slices.Index(vm.Kernels(), environment)
}

func (r *runner) runOne(ctx context.Context, environment string) *environmentReport {
	rep := &environmentReport{Environment: environment, Counts: counts{}}
	start := time.Now()
	var err error
	switch {
	case environment != pureTests && len(r.kernel) == 0:
		err = fmt.Errorf("no kernel tests in %s: a package has them if its tests import internal/kerneltest", strings.Join(r.patterns, " "))
	case environment == pureTests:
		err = r.runHere(ctx, rep, nil)
	case environment == hostKernel:
		err = r.runOnHostKernel(ctx, rep)
	default:
		err = r.runInMachine(ctx, rep)
	}
	rep.Seconds = time.Since(start).Seconds()
	if err != nil {
		rep.Problem = err.Error()
		rep.Failed = max(rep.Failed, 1)
	}
	return rep
}

func (r *runner) testFlags() []string {
	flags := []string{"-test.paniconexit0", "-test.v=test2json", "-test.timeout=" + r.timeout.String()}
	if r.run != "" {
		flags = append(flags, "-test.run="+r.run)
	}
	if r.short {
		flags = append(flags, "-test.short")
	}
	return flags
}

// hardTimeout is for a test binary that does not keep its own timeout, which
// would say more.
func (r *runner) hardTimeout() time.Duration { return r.timeout + 30*time.Second }

func testEnv(environment string) string { return "HOLDFAST_TEST_KERNEL=" + environment }

// logf tells of what takes time.
func logf(format string, args ...any) { fmt.Fprintf(os.Stderr, "vmtest: "+format+"\n", args...) }

// runOnHostKernel runs the kernel tests on the machine's own kernel, in a
// network and a mount namespace of their own: nothing that they leave behind
// stays.
func (r *runner) runOnHostKernel(ctx context.Context, rep *environmentReport) error {
	if os.Geteuid() != 0 {
		return errors.New("kernel tests on the machine's own kernel need root")
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	rep.Release = unix.ByteSliceToString(uts.Release[:])
	return r.runHere(ctx, rep, func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, testEnv(hostKernel))
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	})
}

// runHere runs test binaries on this machine, each in its package's
// directory.
func (r *runner) runHere(ctx context.Context, rep *environmentReport, prepare func(*exec.Cmd)) error {
	for _, p := range r.packages(rep.Environment) {
		t := &packageRun{runner: r, pkg: p, report: rep}
		ctx, cancel := context.WithTimeout(ctx, r.hardTimeout())
		cmd := exec.CommandContext(ctx, p.binary, r.testFlags()...)
		cmd.Dir = p.Dir
		cmd.Env = append(os.Environ(), packagesEnv+"="+p.built)
		cmd.Stdout, cmd.Stderr = t, t
		cmd.WaitDelay = 5 * time.Second
		if prepare != nil {
			prepare(cmd)
		}
		start := time.Now()
		err := cmd.Run()
		cancel()
		why := ""
		if err != nil && (cmd.ProcessState == nil || cmd.ProcessState.ExitCode() < 0) {
			why = err.Error()
		}
		if err := t.end(time.Since(start), err == nil, why); err != nil {
			return err
		}
	}
	return nil
}

// runInMachine runs the kernel tests in one virtual machine.
func (r *runner) runInMachine(ctx context.Context, rep *environmentReport) error {
	kernel := rep.Environment
	cfg := vm.Config{
		Kernel: kernel, Timeout: r.machineTimeout, ICount: r.icount, Sysctls: r.sysctls,
		Logf: logf,
	}
	if r.console {
		cfg.Console = os.Stderr
	}
	var runs []*packageRun
	var errs []error
	for _, p := range r.packages(kernel) {
		files, err := p.guestContent(ctx)
		if err != nil {
			return err
		}
		cfg.Files = append(cfg.Files, files...)
		t := &packageRun{runner: r, pkg: p, report: rep}
		runs = append(runs, t)
		cfg.Commands = append(cfg.Commands, vm.Command{
			Path: p.guestBinary(), Args: r.testFlags(), Dir: p.guestDir(),
			Env:     []string{testEnv(kernel), "HOLDFAST_CACHE=" + vm.GuestCache, packagesEnv + "=" + guestPackages},
			Timeout: r.hardTimeout(), Stdout: t, Stderr: t,
			Done: func(s vm.Status) {
				why := ""
				if s.Code < 0 {
					why = s.String()
				}
				errs = append(errs, t.end(s.Elapsed, s.OK(), why))
			},
		})
	}
	if len(cfg.Commands) == 0 {
		return nil // no test is for this kernel
	}
	result, err := vm.Run(ctx, cfg)
	rep.Release = result.Release
	for _, t := range runs {
		if !t.ended {
			errs = append(errs, t.end(0, false, "the machine stopped before these tests ended"))
		}
	}
	return errors.Join(append(errs, err)...)
}

// packageRun is one package's tests running in one environment. Written to
// it is the output of the test binary.
type packageRun struct {
	*runner
	pkg    *testPackage
	report *environmentReport

	outcome   *outcome
	converter *converter
	block     *block
	ended     bool
}

func (t *packageRun) Write(p []byte) (int, error) {
	if err := t.begin(); err != nil {
		return 0, err
	}
	return t.converter.Write(p)
}

func (t *packageRun) begin() (err error) {
	if t.converter != nil {
		return nil
	}
	t.block = t.out.open()
	var echo io.Writer
	if t.verbose {
		echo = t.block
	}
	t.outcome = newOutcome(t.report.Environment, t.pkg.ImportPath, echo)
	t.converter, err = newConverter(t.test2json, t.outcome)
	return err
}

// end takes the result into the report and prints it. why says what other
// than a test failed.
func (t *packageRun) end(elapsed time.Duration, ok bool, why string) error {
	t.ended = true
	if err := t.begin(); err != nil {
		return err
	}
	if err := t.converter.Close(); err != nil {
		return err
	}
	o := t.outcome
	o.elapsed = elapsed
	o.failed = !ok
	if why != "" {
		o.complaints = append(o.complaints, t.pkg.name()+": "+why)
	}
	o.finish(t.skips, t.pkg.name(), t.run == "" && !t.short)
	t.report.add(o)
	if err := o.print(t.block); err != nil {
		return err
	}
	return t.block.Close()
}

// printer keeps the output of packages that run at once apart.
type printer struct {
	mu     sync.Mutex
	w      io.Writer
	stream bool // nothing runs at once: print as it comes
}

func (p *printer) open() *block { return &block{printer: p} }

// block is the output of one package: printed whole by Close, unless its
// printer streams.
type block struct {
	printer *printer
	held    []byte
}

func (b *block) Write(p []byte) (int, error) {
	if !b.printer.stream {
		b.held = append(b.held, p...)
		return len(p), nil
	}
	b.printer.mu.Lock()
	defer b.printer.mu.Unlock()
	return b.printer.w.Write(p)
}

func (b *block) Close() error {
	b.printer.mu.Lock()
	defer b.printer.mu.Unlock()
	_, err := b.printer.w.Write(b.held)
	b.held = nil
	return err
}
