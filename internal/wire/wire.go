// Package wire has what the daemon and its clients say to each other: the Varlink
// interface dev.holdfast.Attachments, and Go types that stand for its own.
package wire

import (
	_ "embed"
	"time"

	"github.com/holdfast-bpf/holdfast/arbiter"
	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/features"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// DefaultSocket is where the daemon listens.
const DefaultSocket = "/run/holdfast/holdfast.sock"

// Interface is the interface's name, and Description what it consists of.
const Interface = "dev.holdfast.Attachments"

//go:embed dev.holdfast.Attachments.varlink
var Description string

// Hook is where programs run. Netns is the number of a descriptor.
type Hook struct {
	Interface string    `json:"interface"`
	Ifindex   int       `json:"ifindex,omitempty"`
	Mode      *xdp.Mode `json:"mode,omitempty"`
	Netns     *int      `json:"netns,omitempty"`
}

// Object is a file to load from, by the number of its descriptor.
type Object struct {
	File        int      `json:"file"`
	Name        string   `json:"name,omitempty"`
	Program     string   `json:"program,omitempty"`
	Section     string   `json:"section,omitempty"`
	First       bool     `json:"first,omitempty"`
	Variables   []string `json:"variables,omitempty"`
	DeviceBound bool     `json:"device_bound,omitempty"`
}

// Placing is what a change says of when a member runs.
type Placing struct {
	Priority  *uint32        `json:"priority,omitempty"`
	Before    string         `json:"before,omitempty"`
	After     string         `json:"after,omitempty"`
	ProceedOn *chain.Actions `json:"proceed_on,omitempty"`
	Exclusive *bool          `json:"exclusive,omitempty"`
}

// Change is one change of a chain.
type Change struct {
	Op     owned.Op `json:"op"`
	Name   string   `json:"name,omitempty"`
	Expect uint64   `json:"expect,omitempty"`
	Placing
	Lifetime owned.Lifetime `json:"lifetime,omitempty"`
	Object   *Object        `json:"object,omitempty"`
	// Extension is the number of a descriptor.
	Extension *int `json:"extension,omitempty"`
}

// Apply are the parameters of method Apply, and those of the methods for one change
// follow.
type Apply struct {
	Hook    Hook           `json:"hook"`
	Changes []Change       `json:"changes"`
	Expect  *uint64        `json:"expect,omitempty"`
	Engine  arbiter.Engine `json:"engine,omitempty"`
	Stats   *bool          `json:"stats,omitempty"`
	Foreign bool           `json:"foreign,omitempty"`
	DryRun  bool           `json:"dry_run,omitempty"`
	Confirm bool           `json:"confirm,omitempty"`
}

// Attach adds a member.
type Attach struct {
	Hook   Hook    `json:"hook"`
	Object *Object `json:"object,omitempty"`
	Name   string  `json:"name,omitempty"`
	Placing
	Lifetime  owned.Lifetime `json:"lifetime,omitempty"`
	Extension *int           `json:"extension,omitempty"`
}

// Replace replaces a member's program.
type Replace struct {
	Hook      Hook    `json:"hook"`
	Name      string  `json:"name"`
	Object    *Object `json:"object,omitempty"`
	Expect    uint64  `json:"expect,omitempty"`
	Extension *int    `json:"extension,omitempty"`
}

// Detach takes a member out.
type Detach struct {
	Hook    Hook   `json:"hook"`
	Name    string `json:"name"`
	ID      uint32 `json:"id,omitempty"`
	Foreign bool   `json:"foreign,omitempty"`
}

// Set says when a member runs.
type Set struct {
	Hook   Hook   `json:"hook"`
	Name   string `json:"name"`
	Expect uint64 `json:"expect,omitempty"`
	Placing
}

// Outcome is what became of a chain.
type Outcome struct {
	Before *owned.Chain `json:"before,omitempty"`
	After  *owned.Chain `json:"after,omitempty"`
	Diff   *owned.Diff  `json:"diff,omitempty"`
}

// Applied is a reply to one of them. Only those that add or replace have leases.
type Applied struct {
	Outcome
	Leases []Lease `json:"leases,omitempty"`
	Event  *Event  `json:"event,omitempty"`
}

// Lease is a held member, with the numbers of its descriptors.
type Lease struct {
	Entry  string         `json:"entry"`
	ID     uint32         `json:"id"`
	Member string         `json:"member"`
	Token  *int           `json:"token,omitempty"`
	Link   *int           `json:"link,omitempty"`
	Maps   map[string]int `json:"maps,omitempty"`
}

// Event is what has happened. Link is the number of a descriptor.
type Event struct {
	Time      time.Time      `json:"time"`
	Kind      EventKind      `json:"kind"`
	Interface string         `json:"interface,omitempty"`
	Netns     string         `json:"netns,omitempty"`
	Entry     string         `json:"entry,omitempty"`
	Member    string         `json:"member,omitempty"`
	ID        uint32         `json:"id,omitempty"`
	Owner     *arbiter.Owner `json:"owner,omitempty"`
	// ProgramID and OldProgramID are of what netlink attached.
	ProgramID    uint32 `json:"program_id,omitempty"`
	OldProgramID uint32 `json:"old_program_id,omitempty"`
	Message      string `json:"message,omitempty"`
	Link         *int   `json:"link,omitempty"`
}

// EventKind is what kind of thing has happened.
type EventKind string

// The kinds of events. Those of a lease are Moved, which has a new link to take
// over, and Ended. Attached, Replaced and Detached without an owner are somebody else's
// doing, by netlink, of whom the kernel does not tell.
const (
	Attached EventKind = "attached"
	Replaced EventKind = "replaced"
	Detached EventKind = "detached"
	Changed  EventKind = "changed"
	Locked   EventKind = "locked"
	Unlocked EventKind = "unlocked"
	Adopted  EventKind = "adopted"
	Claimed  EventKind = "claimed"
	Moved    EventKind = "moved"
	Ended    EventKind = "ended"
	Denied   EventKind = "denied"
	Conflict EventKind = "conflict"
	Drift    EventKind = "drift"
	Restored EventKind = "restored"
	Reloaded EventKind = "reloaded"
)

// Adopt takes over what netlink attached.
type Adopt struct {
	Hook    Hook   `json:"hook"`
	Object  Object `json:"object"`
	Name    string `json:"name,omitempty"`
	Confirm bool   `json:"confirm,omitempty"`
}

// AdoptReply is what was taken over.
type AdoptReply struct {
	Outcome
	ProgramID uint32        `json:"program_id"`
	Gap       time.Duration `json:"gap"`
}

// Lock are the parameters of methods Lock and Unlock.
type Lock struct {
	Hook    Hook `json:"hook"`
	Confirm bool `json:"confirm,omitempty"`
}

// Slot asks what to load a program against, and SlotReply says so: a program, by the
// number of its descriptor, and a function there.
type Slot struct {
	Hook Hook `json:"hook"`
}

// SlotReply is the answer.
type SlotReply struct {
	Target   int    `json:"target"`
	Function string `json:"function"`
}

// Claim proves a lease by the number of a descriptor.
type Claim struct {
	Proof int `json:"proof"`
}

// ClaimReply is a lease that was proven, or an event of it.
type ClaimReply struct {
	Lease *Lease `json:"lease,omitempty"`
	Event *Event `json:"event,omitempty"`
}

// Get asks what is attached at a hook.
type Get struct {
	Hook Hook `json:"hook"`
}

// GetReply is what is, nil where nothing is.
type GetReply struct {
	Attachment *arbiter.Status `json:"attachment,omitempty"`
}

// List asks for what is attached in namespaces.
type List struct {
	Netns   *int `json:"netns,omitempty"`
	All     bool `json:"all,omitempty"`
	Holders bool `json:"holders,omitempty"`
}

// ListReply is what is.
type ListReply struct {
	Attachments []arbiter.Status `json:"attachments"`
}

// Collect removes what attaches nothing any more.
type Collect struct {
	DryRun bool `json:"dry_run,omitempty"`
}

// CollectReply is what was removed.
type CollectReply struct {
	Stale []arbiter.Stale `json:"stale"`
}

// Watch asks for events.
type Watch struct {
	Since     *time.Time `json:"since,omitempty"`
	Interface string     `json:"interface,omitempty"`
}

// WatchReply is one.
type WatchReply struct {
	Event Event `json:"event"`
}

// FeaturesReply is what the kernel can do.
type FeaturesReply struct {
	Features []features.Feature `json:"features"`
}

// May asks what the policy says.
type May struct {
	Verb      arbiter.Verb   `json:"verb"`
	Hook      *Hook          `json:"hook,omitempty"`
	Member    string         `json:"member,omitempty"`
	Lifetime  owned.Lifetime `json:"lifetime,omitempty"`
	Priority  *uint32        `json:"priority,omitempty"`
	Exclusive bool           `json:"exclusive,omitempty"`
}

// MayReply is what it says.
type MayReply struct {
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule,omitempty"`
	Reason  string `json:"reason"`
}

// Empty are no parameters.
type Empty struct{}
