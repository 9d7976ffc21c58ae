package libxdp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/internal/bpffs"
	"github.com/holdfast-bpf/holdfast/object"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// DefaultBPFFS is where libxdp's tools pin, unless LIBXDP_BPFFS tells them
// otherwise.
const DefaultBPFFS = "/sys/fs/bpf"

// DefaultLockTimeout is how long the lock on the pins is waited for.
const DefaultLockTimeout = 10 * time.Second

// DispatcherName is what every dispatcher is called, and no other program.
const DispatcherName = dispatcherName

// MaxMembers is how many programs a chain can have.
const MaxMembers = 10

// Options say where the pins are.
type Options struct {
	// BPFFS is a directory in a bpffs. The pins are in its directory xdp,
	// which the first change makes. The default is DefaultBPFFS.
	BPFFS string
	// LockTimeout is how long to wait for the lock on the pins,
	// DefaultLockTimeout where it is 0.
	LockTimeout time.Duration
	// Log is told what was found and mended, as slog.Info would be.
	Log func(msg string, args ...any)
}

// Chains are the chains whose pins are in one bpffs. They can be used from
// several goroutines.
type Chains struct {
	root    *bpffs.Root // nil where there is no bpffs
	where   string
	timeout time.Duration
	log     func(msg string, args ...any)
	leaving leaving
}

// Open opens the bpffs. Where there is none, what needs no pins works still, and
// all else says so. The caller closes it.
func Open(o Options) (*Chains, error) {
	c := &Chains{where: o.BPFFS, timeout: o.LockTimeout, log: o.Log}
	if c.where == "" {
		c.where = DefaultBPFFS
	}
	if c.timeout == 0 {
		c.timeout = DefaultLockTimeout
	}
	if c.log == nil {
		c.log = func(string, ...any) {}
	}
	root, err := bpffs.Open(c.where)
	switch {
	case errors.Is(err, bpffs.ErrNoBPFFS):
	case err != nil:
		return nil, fmt.Errorf("open the bpffs: %w", err)
	default:
		c.root = root
	}
	return c, nil
}

// Close waits as Wait does and closes the bpffs. It changes nothing.
func (c *Chains) Close() error {
	c.Wait()
	if c.root == nil {
		return nil
	}
	return c.root.Close()
}

// Wait returns when nothing is left of the chains that were changed. A change is
// made when its method returns, but what it replaced keeps its pins for as long
// as a packet can be under way in it, some milliseconds. Where the process ends
// meanwhile they are for the next change at the hook to remove, whoever makes
// it.
func (c *Chains) Wait() { c.leaving.wait() }

// Kind is what is at a hook.
type Kind string

const (
	// Empty: nothing is attached.
	Empty Kind = "empty"
	// Single: a program that is no dispatcher. libxdp calls it legacy.
	Single Kind = "single"
	// Dispatcher: a chain.
	Dispatcher Kind = "dispatcher"
)

// Makers of dispatchers, as far as they can be told apart.
const (
	MadeByHoldfast = "holdfast"
	MadeByOther    = "libxdp"
)

// Chain is what is at a hook.
type Chain struct {
	Kind Kind `json:"kind"`
	// Version is the dispatcher's: 1, 2 or 3, or another where it is not
	// known, with a Problem. 0 where there is no dispatcher.
	Version int `json:"version,omitempty"`
	// Mode is the one that the program is attached in, and the hook's own
	// where it is empty.
	Mode xdp.Mode `json:"mode"`
	// Attachment is what is attached, with its rival's details: the
	// dispatcher or the single program. It is nil where the hook is empty.
	Attachment *xdp.Attachment `json:"attachment,omitempty"`
	// Dispatcher is the attached program of a chain; zero for all others.
	Dispatcher xdp.Program `json:"dispatcher,omitzero"`
	// Frags tells that the chain takes packets of several buffers.
	Frags bool `json:"frags,omitempty"`
	// DeviceBound tells that the chain was loaded for this interface only.
	DeviceBound bool `json:"device_bound,omitempty"`
	// MadeBy is MadeByHoldfast or MadeByOther: who built the dispatcher, which
	// is who changed the chain last. Empty where there is no dispatcher.
	MadeBy string `json:"made_by,omitempty"`
	// Members are in the order that they run in. There are none where a
	// Problem keeps them from being told.
	Members []Member `json:"members,omitempty"`
	// Problem says in words why the members can't be told, or why the chain
	// can't be changed. Empty where all is well.
	Problem string `json:"problem,omitempty"`
}

// Member is a program of a chain.
type Member struct {
	// Slot is the number of the dispatcher's function that it extends.
	Slot int `json:"slot"`
	// Name is the function's, in full: the kernel keeps 15 bytes of it and BTF
	// the rest.
	Name      string        `json:"name"`
	Priority  uint32        `json:"priority"`
	ProceedOn chain.Actions `json:"proceed_on"`
	// Frags and DeviceBound are what it was loaded with.
	Frags       bool        `json:"frags,omitempty"`
	DeviceBound bool        `json:"device_bound,omitempty"`
	Program     xdp.Program `json:"program"`
}

// Addition is a program that is to become a member.
type Addition struct {
	// Object is where the program comes from, and Load how it is loaded. The
	// program and its maps live as long as the chain does; a program array,
	// which the kernel would empty when the process ends, has to be pinned or
	// to be one of Load.MapReplacements, or ArraysMayEmpty.
	Object *object.Object
	Load   object.LoadOptions
	// ProgramID, instead of an object, is an extension that is loaded already,
	// such as a member of another chain, and is attached here as well. Whether
	// it takes packets of several buffers can't be told, and is not assumed.
	ProgramID uint32
	// ArraysMayEmpty lets the kernel empty program arrays when the process ends:
	// another process is to open and fill them, and to hold them from then on.
	ArraysMayEmpty bool
	// Priority and ProceedOn are by default those of the object's run
	// configuration.
	Priority  *uint32
	ProceedOn *chain.Actions
	// Before and After name members, those that are added with it and come
	// earlier too. The priority is then one that fits, see [chain.Place].
	Before, After string
	// Adopt says that the single program at the hook is this object's: the
	// chain takes its place without a gap. Without it such a program is a
	// conflict.
	Adopt bool
}

// Target names a member, by its name, its program's id or both. It must fit
// exactly one.
type Target struct {
	Name string
	ID   uint32
}

func (t Target) String() string {
	switch {
	case t.Name == "":
		return fmt.Sprintf("program %d", t.ID)
	case t.ID == 0:
		return fmt.Sprintf("%q", t.Name)
	default:
		return fmt.Sprintf("%q, program %d", t.Name, t.ID)
	}
}

// Settings are what [Chains.Set] changes of a member. What is left out stays as
// it is. Before and After name other members, and exclude a Priority.
type Settings struct {
	Priority      *uint32
	ProceedOn     *chain.Actions
	Before, After string
}

// What can go wrong beside package xdp's sentinels, for errors.Is. Each is
// wrapped by an [*xdp.Error].
var (
	// ErrNoFreplace: chains can't be had here, because the kernel takes no
	// extensions, or there is no BTF or no bpffs. It is an ErrNotSupported. One
	// program alone can be attached still, with package xdp.
	ErrNoFreplace = fmt.Errorf("%w: chains of the libxdp protocol can't be had here", xdp.ErrNotSupported)
	// ErrFull: the chain has no slot left.
	ErrFull = errors.New("the chain is full")
	// ErrPlain: a program that is loaded as an XDP program can't become an
	// extension. It is an ErrInvalid.
	ErrPlain = fmt.Errorf("%w: a plain XDP program can't join a chain", xdp.ErrInvalid)
	// ErrDamaged: the chain has a Problem and can't be changed. It is an
	// ErrConflict.
	ErrDamaged = fmt.Errorf("%w: the chain can't be changed", xdp.ErrConflict)
	// ErrNoMember: no member is meant by that name or id, or several are. It
	// is an ErrNotFound.
	ErrNoMember = fmt.Errorf("%w: no such member", xdp.ErrNotFound)
	// ErrLockTimeout: another process held the lock on the pins for longer
	// than Options.LockTimeout.
	ErrLockTimeout = bpffs.ErrLockTimeout
)

// Cleaned is a directory of pins that [Chains.Clean] looked at and that no
// chain it was asked about uses.
type Cleaned struct {
	// Path is where the directory is.
	Path string `json:"path"`
	// Index is the interface's and DispatcherID the program's in its name.
	Index        int    `json:"index"`
	DispatcherID uint32 `json:"dispatcher_id"`
	// Removed tells whether it is gone now, and Reason why or why not.
	Removed bool   `json:"removed"`
	Reason  string `json:"reason"`
}

// Read tells what is at the hook. In mode Auto that is the program which sees
// packets. It changes nothing, and takes the lock only while it opens pins. What
// can't be told is a [Chain.Problem], and no error.
//
// Errors: xdp.ErrNotFound, xdp.ErrPermission, ErrLockTimeout.
func (c *Chains) Read(h *xdp.Hook) (*Chain, error) {
	s, err := c.read(context.Background(), "read", h)
	if err != nil {
		return nil, err
	}
	s.close()
	return &s.Chain, nil
}

// Add adds programs to the chain, all or none, in one swap. On an empty hook it
// begins a chain. The members that are there stay attached throughout.
//
// Errors: those of Read and of [object.Object.Load]; xdp.ErrConflict where a
// link or a single program has the hook, or where others kept changing the
// chain; ErrDamaged, ErrFull, ErrPlain, ErrNoFreplace, xdp.ErrInvalid,
// xdp.ErrDeviceBound, a [*chain.PlaceError], and what attaching by netlink can
// be refused for, see [xdp.Hook.Attach].
func (c *Chains) Add(ctx context.Context, h *xdp.Hook, adds ...Addition) (*Chain, error) {
	return c.change(ctx, request{op: "add to chain", hook: h, add: adds})
}

// Remove removes members, all or none, in one swap. With the last one the hook
// becomes empty.
//
// Errors: those of Add, and ErrNoMember.
func (c *Chains) Remove(ctx context.Context, h *xdp.Hook, targets ...Target) (*Chain, error) {
	return c.change(ctx, request{op: "remove from chain", hook: h, remove: targets})
}

// Replace puts a program in a member's place: with its priority and actions,
// unless the addition gives others, and between the same neighbours.
//
// Errors: those of Add, and ErrNoMember.
func (c *Chains) Replace(ctx context.Context, h *xdp.Hook, t Target, a Addition) (*Chain, error) {
	return c.change(ctx, request{op: "replace in chain", hook: h, replace: &replacement{t, a}})
}

// Set changes a member's priority and actions.
//
// Errors: those of Add, and ErrNoMember.
func (c *Chains) Set(ctx context.Context, h *xdp.Hook, t Target, s Settings) (*Chain, error) {
	return c.change(ctx, request{op: "set in chain", hook: h, set: &setting{t, s}})
}

// RemoveAll detaches whatever netlink attached to the hook, a single program
// too, if the expectation about the attached program holds, and removes its
// pins. With [xdp.Any] it detaches what is there when it is asked.
//
// Errors: those of [xdp.Hook.Detach]: xdp.ErrConflict, xdp.ErrNotAttached, ...;
// ErrLockTimeout, after which the pins stay for the next change or Clean.
func (c *Chains) RemoveAll(ctx context.Context, h *xdp.Hook, e xdp.Expectation) error {
	return c.removeAll(ctx, h, e)
}

// Clean removes the pins that killed processes left: those of dispatchers that
// are attached nowhere and that no process has open. It looks for a dispatcher
// through all network namespaces that can be found and ns, so that the pins of
// another namespace's chains stay. index, if it is not 0, narrows it to what was
// made for the interface of that index.
//
// It returns what it removed, and what it left although no interface of ns uses
// it.
func (c *Chains) Clean(ctx context.Context, ns *xdp.Namespace, index int) ([]Cleaned, error) {
	return c.clean(ctx, ns, index)
}

// Leftovers tells what Clean would return: what is Removed there is what Clean
// would remove. It changes nothing.
func (c *Chains) Leftovers(ctx context.Context, ns *xdp.Namespace, index int) ([]Cleaned, error) {
	return c.leftovers(ctx, ns, index)
}
