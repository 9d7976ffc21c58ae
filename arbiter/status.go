package arbiter

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Lifetime is when an attachment ends.
type Lifetime = owned.Lifetime

const (
	// Permanent: when someone entitled detaches it.
	Permanent = owned.Permanent
	// Held: when the last process that holds it ends.
	Held = owned.Held
	// Defunct: it has ended; only a pin or a descriptor of its link is left.
	Defunct Lifetime = "defunct"
	// Unknown: neither a pin nor a process that keeps it can be seen from here,
	// which takes root and a bpffs in sight.
	Unknown Lifetime = "unknown"
)

// Status is an attachment with all that is known of it.
type Status struct {
	// Namespace is what opens the network namespace, empty for the caller's;
	// NamespaceID names it for as long as the machine runs.
	Namespace   string `json:"netns"`
	NamespaceID string `json:"netns_id,omitempty"`
	// Interface is where it is; of a defunct attachment, where it was.
	Interface string `json:"interface"`
	Index     int    `json:"ifindex"`
	xdp.Attachment
	// Name and Owner are empty where Holdfast did not make the attachment
	// permanent.
	Name  string `json:"name,omitempty"`
	Owner *Owner `json:"owner,omitempty"`
	// Since is when it was attached, and where that is not known when the
	// program was loaded, which SinceLoad tells.
	Since     time.Time `json:"since,omitzero"`
	SinceLoad bool      `json:"since_load,omitempty"`
	Lifetime  Lifetime  `json:"lifetime"`
	// Entry is the attachment's directory in Holdfast's state.
	Entry string `json:"entry,omitempty"`
	// Chain is what runs at an owned hook, nil for all that Holdfast does not own.
	Chain *ChainStatus `json:"chain,omitempty"`
	// Digest is the program's, see [object.Loaded], where Holdfast attached
	// it and nobody else has replaced it since.
	Digest string `json:"-"`
}

// Status reads what is attached in the namespaces, and who holds it. It changes
// nothing. Defunct links, which belong to no namespace, are shown as well.
func (a *Arbiter) Status(namespaces []*xdp.Namespace) ([]Status, error) {
	return a.List(namespaces, true)
}

// List is Status. Without holders it leaves out the pins and the holders of what
// Holdfast attached: they take a look at all pins and all processes of the machine.
func (a *Arbiter) List(namespaces []*xdp.Namespace, holders bool) ([]Status, error) {
	entries, err := a.read()
	if err != nil {
		return nil, err
	}
	all, err := a.list(namespaces, entries)
	if err != nil {
		return nil, err
	}
	var attachments []*xdp.Attachment
	for i := range all {
		if holders || all[i].Entry == "" {
			attachments = append(attachments, &all[i].Attachment)
		}
	}
	if len(attachments) > 0 {
		xdp.FindHolders(attachments...)
	}
	// A link that nobody keeps is about to go.
	all = slices.DeleteFunc(all, func(s Status) bool {
		return s.Lifetime == Defunct && s.Entry == "" && len(s.Holders)+len(s.Pins) == 0
	})
	for i := range all {
		if s := &all[i]; s.Lifetime == "" {
			s.Lifetime = s.lifetime()
		}
	}
	return all, nil
}

// Own is List of what Holdfast has attached only, defunct or not, without holders:
// it looks at no other process.
func (a *Arbiter) Own(namespaces []*xdp.Namespace) ([]Status, error) {
	entries, err := a.read()
	if err != nil || len(entries) == 0 {
		return nil, err
	}
	all, err := a.list(namespaces, entries)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(s Status) bool { return s.Entry == "" })
	for i := range all {
		if s := &all[i]; s.Lifetime == "" {
			s.Lifetime = s.lifetime()
		}
	}
	return all, nil
}

// list is List without holders, and without what they tell.
func (a *Arbiter) list(namespaces []*xdp.Namespace, entries []*entry) ([]Status, error) {
	all := []Status{}
	for _, ns := range namespaces {
		states, err := ns.States()
		if err != nil {
			return nil, err
		}
		for _, s := range states {
			for _, at := range s.Attachments {
				st, err := a.status(ns, s, at, entries)
				if err != nil {
					return nil, err
				}
				all = append(all, st)
			}
		}
	}
	return append(all, defunct(entries)...), nil
}

// defunct are the links that attach nothing any more: Holdfast's, and those of
// others as far as the caller may see them.
func defunct(entries []*entry) []Status {
	var all []Status
	show := func(l xdp.LinkInfo, e *entry) {
		st := Status{
			Lifetime:   Defunct,
			Attachment: xdp.Attachment{Held: xdp.HeldByLink, LinkID: l.ID, Program: xdp.Program{ID: l.ProgramID}},
		}
		if e != nil {
			st.Entry = e.key
			st.describe(e)
		}
		all = append(all, st)
	}
	known := map[uint32]bool{}
	for _, e := range entries {
		if e.link != nil && e.link.Defunct() {
			known[e.link.ID] = true
			show(*e.link, e)
		}
	}
	links, err := xdp.Links()
	if err != nil {
		return all
	}
	for _, l := range links {
		if l.Defunct() && !known[l.ID] {
			show(l, nil)
		}
	}
	return all
}

// lifetime tells when the attachment ends from what keeps it.
func (s *Status) lifetime() Lifetime {
	switch {
	case s.Held == xdp.HeldByNetlink, s.Entry != "", len(s.Pins) > 0:
		return Permanent
	case s.Held == xdp.HeldByLink && len(s.Holders) > 0:
		return Held
	}
	return Unknown
}

// At reads what is attached at the hook, nil for nothing. It does not look for
// holders.
func (a *Arbiter) At(h *xdp.Hook) (*Status, error) {
	s, err := h.Query()
	if err != nil {
		return nil, err
	}
	at := s.At(h.Mode())
	if at == nil {
		return nil, nil
	}
	entries, err := a.readAbout(key(h.Namespace().ID(), h.Index(), at.Mode), at)
	if err != nil {
		return nil, err
	}
	st, err := a.status(h.Namespace(), s, *at, entries)
	if err != nil {
		return nil, err
	}
	if st.Lifetime == "" {
		st.Lifetime = Permanent
		if st.Held == xdp.HeldByLink && st.Entry == "" {
			st.Lifetime = Held
		}
	}
	return &st, nil
}

func (a *Arbiter) status(ns *xdp.Namespace, s xdp.State, at xdp.Attachment, entries []*entry) (Status, error) {
	st := Status{
		Namespace: ns.Spec(), NamespaceID: ns.ID(),
		Interface: s.Interface.Name, Index: s.Interface.Index,
		Attachment: at, Since: at.Program.LoadedAt, SinceLoad: true,
	}
	e, err := find(entries, placeOf(ns, s.Interface.Name, s.Interface.Index, at.Mode), &at)
	if e != nil {
		if e, err = a.asItRuns(e); err != nil {
			return st, err
		}
		st.Entry = e.key
		if e.chain != nil {
			release, err := e.chain.keepOpen()
			if err != nil {
				return st, err
			}
			defer release()
		}
		st.describe(e)
		if st.Chain = a.chainStatus(e); st.Chain != nil && !e.chain.current.permanent() {
			st.Lifetime = Held
		}
	}
	return st, err
}

// asItRuns is the entry with the change made that somebody is making, or was
// killed at, if the kernel runs what comes of it.
func (a *Arbiter) asItRuns(e *entry) (*entry, error) {
	if e.chain == nil || e.chain.header.Pending == nil {
		return e, nil
	}
	made, err := a.wasMade(e.chain)
	if err != nil || !made {
		return e, err
	}
	r := *e.chain
	r.current = r.next
	now := *e
	now.chain, now.record = &r, r.summary()
	return &now, nil
}

func (s *Status) describe(e *entry) {
	if e.recordErr != nil {
		return
	}
	record := e.whole()
	s.Name, s.Owner = record.Name, &record.Owner
	if record.ProgramID == s.Program.ID {
		s.Digest = record.Digest
	}
	s.Since, s.SinceLoad = record.Since, false
	if s.Interface == "" {
		s.Interface = record.Interface
	}
}

// Stale is an entry that attaches nothing any more.
type Stale struct {
	Entry     string `json:"entry"`
	Name      string `json:"name,omitempty"`
	Interface string `json:"interface,omitempty"`
	Why       string `json:"why"`
}

// GC removes the entries that attach nothing any more, the members of chains
// whose holders have ended, and what else killed processes have left. With dryRun
// it only tells. What is attached stays attached. An entry of a shared hook in a
// namespace that can't be found from here is left alone.
func (a *Arbiter) GC(ctx context.Context, dryRun bool) ([]Stale, error) {
	stale := []Stale{}
	if a.root == nil {
		return stale, nil
	}
	stale, chains, err := a.collect(ctx, dryRun)
	if err != nil || dryRun {
		return stale, err
	}
	for _, key := range chains {
		if err := a.forgetDead(ctx, key); err != nil {
			return nil, err
		}
	}
	return stale, nil
}

// collect does what GC does, but for the members of chains: it returns the keys
// of those that have some.
func (a *Arbiter) collect(ctx context.Context, dryRun bool) (stale []Stale, chains []string, err error) {
	l, err := a.lock(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer l.unlock()
	entries, err := a.read()
	if err != nil {
		return nil, nil, err
	}
	attached, err := everywhere(entries)
	if err != nil {
		return nil, nil, err
	}
	stale = []Stale{}
	for _, e := range entries {
		if e.err != nil {
			continue
		}
		at, reachable := attached[e.key]
		if e.link == nil && e.recordErr == nil && e.record.Held == xdp.HeldByNetlink && (!reachable || e.elsewhere(attached)) {
			continue
		}
		why := e.dead(at)
		if why != "" {
			stale = append(stale, Stale{Entry: e.key, Name: e.record.Name, Interface: e.record.Interface, Why: why})
		} else if e.chain != nil {
			if dead := a.deadMembers(e.key, e.chain); len(dead) > 0 {
				chains = append(chains, e.key)
				for _, m := range e.chain.current.Members {
					if dead[m.ID] {
						stale = append(stale, Stale{
							Entry: e.key, Name: m.Name, Interface: e.record.Interface,
							Why: "the process that held it has ended",
						})
					}
				}
			}
		}
		if dryRun {
			continue
		}
		// A change that was made and not acknowledged stays so: whoever asked
		// may still ask again.
		if _, err = a.settle(l, e, at); err != nil {
			return nil, nil, err
		}
	}
	return stale, chains, nil
}

// forgetDead takes the members out of a chain whose holders have ended, if its
// hook can be found from here.
func (a *Arbiter) forgetDead(ctx context.Context, key string) error {
	err := a.atHookOf(key, func(h *xdp.Hook) error {
		if h == nil {
			return nil // gone since
		}
		applied, err := a.Apply(ctx, Transaction{Hook: h})
		if err != nil || applied.Acknowledge == nil {
			return err
		}
		return applied.Acknowledge()
	})
	if errors.Is(err, errElsewhere) {
		return nil
	}
	return err
}

// atHookOf calls f with the hook of an entry, nil where its interface is gone. The
// error is errElsewhere where its network namespace can't be found from here.
func (a *Arbiter) atHookOf(key string, f func(*xdp.Hook) error) error {
	for ns, err := range xdp.Namespaces() {
		if err != nil {
			continue // as if it could not be found
		}
		index, mode, ok := hookOfKey(key, ns.ID())
		if !ok {
			ns.Close()
			continue
		}
		defer ns.Close()
		h, err := ns.HookAt(index, mode)
		if err != nil && !errors.Is(err, xdp.ErrNotFound) {
			return err
		}
		return f(h)
	}
	return errElsewhere
}

var errElsewhere = errors.New("the hook is in another namespace")

// elsewhere tells whether the entry's interface went to another namespace and
// took what netlink attached along.
func (e *entry) elsewhere(attached map[string]*xdp.Attachment) bool {
	for key, at := range attached {
		if key != e.key && at != nil && e.fits(at) {
			return true
		}
	}
	return false
}

// everywhere reads what is attached at the hook of each entry whose namespace
// can be found, under the entry's key. A key without an attachment is a hook
// that is empty.
func everywhere(entries []*entry) (map[string]*xdp.Attachment, error) {
	attached := map[string]*xdp.Attachment{}
	for ns, err := range xdp.Namespaces() {
		if errors.Is(err, xdp.ErrPermission) {
			continue
		}
		if err != nil {
			return nil, err
		}
		states, err := ns.States()
		id := ns.ID()
		ns.Close()
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.in(id) {
				attached[e.key] = nil
			}
		}
		for _, s := range states {
			for _, at := range s.Attachments {
				attached[key(id, s.Interface.Index, at.Mode)] = &at
			}
		}
	}
	return attached, nil
}

// Explain adds what Holdfast knows of the rival to a conflict at the hook.
func (a *Arbiter) Explain(h *xdp.Hook, conflict *xdp.Error) error {
	if conflict.Rival == nil {
		return conflict
	}
	p := placeOf(h.Namespace(), h.Name(), h.Index(), conflict.Rival.Mode)
	entries, err := a.readAbout(p.key, conflict.Rival)
	if err != nil {
		return conflict
	}
	e, err := find(entries, p, conflict.Rival)
	if err != nil {
		return conflict
	}
	return held(conflict, e)
}
