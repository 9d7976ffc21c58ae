package arbiter

import (
	"context"
	"time"

	"github.com/holdfast-bpf/holdfast/internal/netns"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Lifetime is when an attachment ends.
type Lifetime string

const (
	// Permanent: when someone entitled detaches it.
	Permanent Lifetime = "permanent"
	// Held: when the last process with a descriptor of its link ends.
	Held Lifetime = "held"
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
}

// Status reads what is attached in the namespaces, and who holds it. It changes
// nothing. With links it shows every defunct link that Holdfast has, too.
func (a *Arbiter) Status(namespaces []*xdp.Namespace) ([]Status, error) {
	entries, err := a.read()
	if err != nil {
		return nil, err
	}
	all := []Status{}
	for _, ns := range namespaces {
		states, err := ns.States()
		if err != nil {
			return nil, err
		}
		for _, s := range states {
			for _, at := range s.Attachments {
				all = append(all, status(ns, s, at, find(entries, key(ns.ID(), s.Interface.Index, at.Mode), &at)))
			}
		}
	}
	for _, e := range entries {
		if e.link != nil && e.link.Defunct() {
			st := Status{
				Lifetime: Defunct, Entry: e.key, Index: e.link.Index,
				Attachment: xdp.Attachment{Held: xdp.HeldByLink, LinkID: e.link.ID, Program: xdp.Program{ID: e.link.ProgramID}},
			}
			st.describe(e)
			all = append(all, st)
		}
	}
	attachments := make([]*xdp.Attachment, len(all))
	for i := range all {
		attachments[i] = &all[i].Attachment
	}
	xdp.FindHolders(attachments...)
	for i := range all {
		if s := &all[i]; s.Lifetime == "" {
			s.Lifetime = s.lifetime()
		}
	}
	return all, nil
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
	key := key(h.Namespace().ID(), h.Index(), at.Mode)
	entries, err := a.readAbout(key, at)
	if err != nil {
		return nil, err
	}
	st := status(h.Namespace(), s, *at, find(entries, key, at))
	st.Lifetime = Permanent
	if st.Held == xdp.HeldByLink && st.Entry == "" {
		st.Lifetime = Held
	}
	return &st, nil
}

func status(ns *xdp.Namespace, s xdp.State, at xdp.Attachment, e *entry) Status {
	st := Status{
		Namespace: ns.Spec(), NamespaceID: ns.ID(),
		Interface: s.Interface.Name, Index: s.Interface.Index,
		Attachment: at, Since: at.Program.LoadedAt, SinceLoad: true,
	}
	if e != nil {
		st.Entry = e.key
		st.describe(e)
	}
	return st
}

func (s *Status) describe(e *entry) {
	if e.recordErr != nil {
		return
	}
	owner := e.record.Owner
	s.Name, s.Owner = e.record.Name, &owner
	s.Since, s.SinceLoad = e.record.Since, false
	if s.Interface == "" {
		s.Interface = e.record.Interface
	}
}

// Stale is an entry that attaches nothing any more.
type Stale struct {
	Entry     string `json:"entry"`
	Name      string `json:"name,omitempty"`
	Interface string `json:"interface,omitempty"`
	Why       string `json:"why"`
}

// GC removes the entries that attach nothing any more, and what else killed
// processes have left. With dryRun it only tells. What is attached stays
// attached. An entry of a shared hook in a namespace that can't be found from
// here is left alone.
func (a *Arbiter) GC(ctx context.Context, dryRun bool) ([]Stale, error) {
	stale := []Stale{}
	if a.root == nil {
		return stale, nil
	}
	l, err := a.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	entries, err := a.read()
	if err != nil {
		return nil, err
	}
	attached, err := everywhere(entries)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.err != nil {
			continue
		}
		at, reachable := attached[e.key]
		if e.link == nil && e.recordErr == nil && e.record.Held == xdp.HeldByNetlink && (!reachable || e.elsewhere(attached)) {
			continue
		}
		if why := e.dead(at); why != "" {
			stale = append(stale, Stale{Entry: e.key, Name: e.record.Name, Interface: e.record.Interface, Why: why})
		}
		if dryRun {
			continue
		}
		// A change that was made and not acknowledged stays so: whoever asked
		// may still ask again.
		if _, err = a.settle(l, e, at); err != nil {
			return nil, err
		}
	}
	return stale, nil
}

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
	found, err := netns.All()
	if err != nil {
		return nil, err
	}
	attached := map[string]*xdp.Attachment{}
	for _, f := range found {
		ns, err := xdp.OpenNamespace(f.Spec)
		if err != nil {
			continue // gone since, or not to be entered
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
	key := key(h.Namespace().ID(), h.Index(), conflict.Rival.Mode)
	entries, err := a.readAbout(key, conflict.Rival)
	if err != nil {
		return conflict
	}
	return held(conflict, find(entries, key, conflict.Rival))
}
