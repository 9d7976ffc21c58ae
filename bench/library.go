package main

import (
	"errors"
	"runtime"

	"github.com/cilium/ebpf"
	"github.com/holdfast-bpf/holdfast/internal/kernel"
	"github.com/holdfast-bpf/holdfast/internal/rtnl"
	"github.com/holdfast-bpf/holdfast/xdp"
	"golang.org/x/sys/unix"
)

// The names of steps and contenders, as the report shows them.
const (
	attach  = "attach"
	replace = "replace"
	detach  = "detach"
	status  = "status"
	start   = "start"

	bare    = "bare calls"
	door    = "internal/rtnl"
	library = "library"
)

// pair is a program and its successor, for one interface.
type pair struct{ old, new *ebpf.Program }

// pairs gives every interface programs: the same two, or two of its own.
func pairs(programs []*ebpf.Program, interfaces int) []pair {
	p := make([]pair, interfaces)
	for i := range p {
		k := 2 * i % len(programs)
		p[i] = pair{programs[k], programs[k+1]}
	}
	return p
}

// byLink compares the owned hook: attach by a link, replace with expectation,
// read what is there, detach. A turn repeats that, to be well above what a clock
// can tell apart.
func (w *world) byLink(programs []pair, repeat, replaces int, withStatus bool) []contender {
	n := len(w.hooks)
	links := make([]*xdp.Link, n)
	fds := make([]kernel.FD, n)

	viaLibrary := func(c *clock) error {
		return inOrder(
			c.step(attach, n, func() (err error) {
				for i, h := range w.hooks {
					if links[i], err = h.AttachLink(programs[i].old); err != nil {
						return err
					}
				}
				return nil
			}),
			c.step(replace, 2*replaces*n, func() error {
				for range replaces {
					for i, l := range links {
						o := xdp.ReplaceOptions{Program: programs[i].new, Expect: xdp.Expect(programs[i].old)}
						if err := l.Replace(o); err != nil {
							return err
						}
					}
					for i, l := range links {
						o := xdp.ReplaceOptions{Program: programs[i].old, Expect: xdp.Expect(programs[i].new)}
						if err := l.Replace(o); err != nil {
							return err
						}
					}
				}
				return nil
			}),
			when(withStatus, c.step(status, n, func() error { return statusByLibrary(w.ns, n) })),
			c.step(detach, n, func() error {
				for _, l := range links {
					if err := l.Detach(); err != nil {
						return err
					}
				}
				return nil
			}),
			func() error { return each(links, (*xdp.Link).Close) },
		)
	}
	viaCalls := func(c *clock) error {
		return inOrder(
			c.step(attach, n, func() (err error) {
				for i, h := range w.hooks {
					if fds[i], err = kernel.LinkCreateXDP(programs[i].old.FD(), h.Index(), unix.XDP_FLAGS_DRV_MODE); err != nil {
						return err
					}
				}
				return nil
			}),
			c.step(replace, 2*replaces*n, func() error {
				for range replaces {
					for i, fd := range fds {
						if err := kernel.LinkUpdate(fd, programs[i].new.FD(), programs[i].old.FD()); err != nil {
							return err
						}
					}
					for i, fd := range fds {
						if err := kernel.LinkUpdate(fd, programs[i].old.FD(), programs[i].new.FD()); err != nil {
							return err
						}
					}
				}
				return nil
			}),
			when(withStatus, c.step(status, n, func() error { return statusByCalls(w.conn, n) })),
			c.step(detach, n, func() error {
				for _, fd := range fds {
					if err := kernel.LinkDetach(fd); err != nil {
						return err
					}
				}
				return nil
			}),
			func() error { return each(fds, kernel.FD.Close) },
		)
	}
	return []contender{{bare, repeated(repeat, viaCalls)}, {library, repeated(repeat, viaLibrary)}}
}

// byNetlink compares the shared hook: the same with netlink's messages, each
// with an expectation.
func (w *world) byNetlink(socket bareNetlink, programs []pair, repeat, replaces int) []contender {
	n := len(w.hooks)
	viaLibrary := func(c *clock) error {
		return inOrder(
			c.step(attach, n, func() error {
				for i, h := range w.hooks {
					if err := h.Attach(programs[i].old, xdp.Empty); err != nil {
						return err
					}
				}
				return nil
			}),
			c.step(replace, 2*replaces*n, func() error {
				for range replaces {
					for i, h := range w.hooks {
						if err := h.Attach(programs[i].new, xdp.Expect(programs[i].old)); err != nil {
							return err
						}
					}
					for i, h := range w.hooks {
						if err := h.Attach(programs[i].old, xdp.Expect(programs[i].new)); err != nil {
							return err
						}
					}
				}
				return nil
			}),
			c.step(detach, n, func() error {
				for i, h := range w.hooks {
					if err := h.Detach(xdp.Expect(programs[i].old)); err != nil {
						return err
					}
				}
				return nil
			}),
		)
	}
	by := func(change func(index, fd, expected int) error) func(*clock) error {
		return func(c *clock) error {
			return inOrder(
				c.step(attach, n, func() error {
					for i, h := range w.hooks {
						if err := change(h.Index(), programs[i].old.FD(), -1); err != nil {
							return err
						}
					}
					return nil
				}),
				c.step(replace, 2*replaces*n, func() error {
					for range replaces {
						for i, h := range w.hooks {
							if err := change(h.Index(), programs[i].new.FD(), programs[i].old.FD()); err != nil {
								return err
							}
						}
						for i, h := range w.hooks {
							if err := change(h.Index(), programs[i].old.FD(), programs[i].new.FD()); err != nil {
								return err
							}
						}
					}
					return nil
				}),
				c.step(detach, n, func() error {
					for i, h := range w.hooks {
						if err := change(h.Index(), -1, programs[i].old.FD()); err != nil {
							return err
						}
					}
					return nil
				}),
			)
		}
	}
	viaDoor := by(func(index, fd, expected int) error {
		return w.conn.ReplaceXDP(index, fd, expected, unix.XDP_FLAGS_DRV_MODE)
	})
	return []contender{
		{bare, repeated(repeat, by(socket.replace))},
		{door, repeated(repeat, viaDoor)},
		{library, repeated(repeat, viaLibrary)},
	}
}

// elsewhere compares attaching in another network namespace than the caller's.
func (w *world) elsewhere(program *ebpf.Program, repeat int) ([]contender, error) {
	hook, err := w.far.Hook(w.names[0], xdp.Native)
	if err != nil {
		return nil, err
	}
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	viaLibrary := func(c *clock) error {
		var link *xdp.Link
		err := c.time(attach, 1, func() (err error) {
			link, err = hook.AttachLink(program)
			return err
		})
		if err != nil {
			return err
		}
		return errors.Join(link.Detach(), link.Close())
	}
	viaCalls := func(c *clock) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var link kernel.FD
		err := c.time(attach, 1, func() (err error) {
			if err := unix.Setns(w.farNS.FD(), unix.CLONE_NEWNET); err != nil {
				return err
			}
			link, err = kernel.LinkCreateXDP(program.FD(), hook.Index(), unix.XDP_FLAGS_DRV_MODE)
			return errors.Join(err, unix.Setns(home, unix.CLONE_NEWNET))
		})
		if err != nil {
			return err
		}
		return errors.Join(kernel.LinkDetach(link), link.Close())
	}
	return []contender{{bare, repeated(repeat, viaCalls)}, {library, repeated(repeat, viaLibrary)}}, nil
}

// fromNames compares what a program that starts has to do, with names and
// nothing open yet, against no more than the calls that attach.
func (w *world) fromNames(program *ebpf.Program) []contender {
	n := len(w.hooks)
	links := make([]*xdp.Link, n)
	fds := make([]kernel.FD, n)
	viaLibrary := func(c *clock) error {
		err := c.time(attach, 1, func() error {
			ns, err := xdp.OpenNamespace("")
			if err != nil {
				return err
			}
			defer ns.Close()
			for i, name := range w.names {
				hook, err := ns.Hook(name, xdp.Native)
				if err != nil {
					return err
				}
				if links[i], err = hook.AttachLink(program); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		return errors.Join(each(links, (*xdp.Link).Detach), each(links, (*xdp.Link).Close))
	}
	viaCalls := func(c *clock) error {
		err := c.time(attach, 1, func() (err error) {
			for i, h := range w.hooks {
				if fds[i], err = kernel.LinkCreateXDP(program.FD(), h.Index(), unix.XDP_FLAGS_DRV_MODE); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		return errors.Join(each(fds, kernel.LinkDetach), each(fds, kernel.FD.Close))
	}
	return []contender{{bare, viaCalls}, {library, viaLibrary}}
}

var errCount = errors.New("not every interface is there, with its program and its link")

func statusByLibrary(ns *xdp.Namespace, want int) error {
	states, err := ns.States()
	if err != nil {
		return err
	}
	for _, s := range states {
		if a := s.At(xdp.Native); a == nil || a.LinkID == 0 || a.Program.Name == "" {
			return errCount
		}
	}
	if len(states) != want {
		return errCount
	}
	return nil
}

// statusByCalls makes the calls that tell of every interface which program it
// has and which link holds it, and keeps nothing of the answers: one dump of
// interfaces, one walk over the links, each program once, and for every
// interface the question whether a link holds it.
func statusByCalls(conn *rtnl.Conn, want int) error {
	devices, err := conn.Devices()
	if err != nil {
		return err
	}
	links, err := kernel.XDPLinks()
	if err != nil {
		return err
	}
	seen := map[uint32]bool{}
	held := 0
	for _, d := range devices {
		if d.XDP.Native == 0 {
			continue
		}
		if !seen[d.XDP.Native] {
			seen[d.XDP.Native] = true
			fd, err := kernel.ProgramByID(d.XDP.Native)
			if err != nil {
				return err
			}
			_, err = kernel.ReadProgram(fd)
			if err := errors.Join(err, fd.Close()); err != nil {
				return err
			}
		}
		if err := conn.ReplaceXDP(d.Index, -1, -1, unix.XDP_FLAGS_DRV_MODE); errors.Is(err, unix.EBUSY) {
			held++
		}
	}
	if held != want || len(links) < want {
		return errCount
	}
	return nil
}

// inOrder calls the functions until one fails.
func inOrder(functions ...func() error) error {
	return each(functions, func(f func() error) error { return f() })
}

func when(wanted bool, f func() error) func() error {
	if !wanted {
		return func() error { return nil }
	}
	return f
}

func each[T any](items []T, f func(T) error) error {
	for _, item := range items {
		if err := f(item); err != nil {
			return err
		}
	}
	return nil
}

func repeated(times int, turn func(*clock) error) func(*clock) error {
	return func(c *clock) error {
		for range times {
			if err := turn(c); err != nil {
				return err
			}
		}
		return nil
	}
}
