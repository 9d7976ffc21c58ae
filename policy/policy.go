// Package policy is what the administrator lets applications do: rules about who may
// have which place at which interface. It decides from what it is given, and asks
// nobody.
//
// A file is YAML:
//
//	version: 1
//	rules:
//	- name: edge filters              # what denials call it
//	  match:                          # all of it must fit; what is left out fits
//	    uid: [1000, 2000-2099]
//	    gid: [998]                    # the primary group or another
//	    unit: ["ddos-*.service"]      # of the system's manager
//	    cgroup: ["/edge.slice/**"]
//	    exe: ["/usr/lib/edge/*"]
//	    contained: false              # in a container or not
//	    interface: ["eth*"]
//	    netns: own                    # any (the default), host, or own: the caller's
//	  allow:                          # or deny: true
//	    verbs: [attach, replace, detach, set]
//	    modes: [native, generic]      # any, where it is left out
//	    lifetimes: [held]             # held and permanent
//	    priority: 10-50               # any
//	    exclusive: false
//	    others: false                 # also what others have made
//	    quota:
//	      members: 4                  # of one user at once
//	      map-memory: 64Mi            # of all of them; or bytes
//	      instructions: 20000         # of one
//	      object-size: 1Mi            # of one
//	    objects: ["sha256:…"]         # digests of what may be loaded
//
// The first rule that matches decides, and what it does not allow is denied, as is
// all that no rule matches. A rule about something that is not known does not match,
// unless it denies.
package policy

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/xdp"
)

// Subject is who asks, as the kernel vouches for it.
type Subject struct {
	UID, GID int
	// Groups are the supplementary groups.
	Groups []int
	// Unit is the systemd unit, and Cgroup the path in the unified hierarchy, empty
	// where they are not known. A path out of the daemon's cgroup namespace, as
	// /../a, counts as not known.
	Unit, Cgroup string
	// Exe is the path of the program, empty where it is not vouched for.
	Exe string
	// Contained tells that it is in a container.
	Contained bool
}

// Verb is what is asked for.
type Verb string

// The verbs. Looking at what is attached needs none.
const (
	Attach  Verb = "attach"
	Replace Verb = "replace"
	Detach  Verb = "detach"
	Set     Verb = "set"
	Lock    Verb = "lock"
	Unlock  Verb = "unlock"
	Adopt   Verb = "adopt"
	Claim   Verb = "claim"
	Reload  Verb = "reload"
)

// Verbs are all of them.
var Verbs = []Verb{Attach, Replace, Detach, Set, Lock, Unlock, Adopt, Claim, Reload}

// Request is one thing that somebody asks for.
type Request struct {
	Verb      Verb
	Interface string
	// HostNetns and OwnNetns tell that the interface is in the network namespace of
	// the host, and in that of who asks.
	HostNetns, OwnNetns bool
	// NetnsUnknown tells that one of the two can't be told.
	NetnsUnknown bool
	Mode         xdp.Mode
	Lifetime     owned.Lifetime
	// Priority is nil where it is left as it is. Beside tells that it follows from
	// another member's, before or after which the member is to run.
	Priority  *uint32
	Beside    bool
	Exclusive bool
	// Others tells that it is about what somebody else has made.
	Others bool
	// Digest is of the object that would be loaded, as sha256: and hex digits, empty
	// where none would be. The others are what it takes; memory is in bytes.
	Digest       string
	ObjectSize   int
	Instructions int
	MapMemory    uint64
	// Usage tells how many members the user has already, and how much memory their
	// maps take in bytes. It is asked where a rule has a quota of them.
	Usage func() (members int, memory uint64)
}

// Policy is a list of rules.
type Policy struct {
	Rules []Rule
}

// Default is the policy where there is none: root may do all, outside of containers,
// and nobody else anything.
func Default() *Policy {
	no := false
	return &Policy{Rules: []Rule{{
		Name: "default", Match: Match{UID: []Range{{0, 0}}, Contained: &no}, Allow: &Allow{Verbs: Verbs, Exclusive: true, Others: true},
	}}}
}

// Rule is one rule. Allow is nil where it denies.
type Rule struct {
	Name string
	// Where is the file and line that it stands at.
	Where string
	Match Match
	Allow *Allow
}

// Match says which requests a rule is about. What is empty fits all.
type Match struct {
	UID, GID          []Range
	Unit, Cgroup, Exe []string
	Contained         *bool
	Interface         []string
	Netns             Netns
}

// Range is of numbers from First to Last.
type Range struct{ First, Last uint32 }

func (r Range) has(n uint32) bool { return r.First <= n && n <= r.Last }

// Netns says which network namespaces a rule is about.
type Netns string

// The namespaces. AnyNetns is the default.
const (
	AnyNetns  Netns = "any"
	HostNetns Netns = "host"
	OwnNetns  Netns = "own"
)

// Allow is what a rule allows. Modes, Lifetimes, Priority and Objects that are empty
// allow all.
type Allow struct {
	Verbs     []Verb
	Modes     []xdp.Mode
	Lifetimes []owned.Lifetime
	Priority  *Range
	Exclusive bool
	Others    bool
	Quota     Quota
	Objects   []string
}

// Quota bounds what a user can have. Nil is no bound.
type Quota struct {
	Members, MapMemory, Instructions, ObjectSize *uint64
}

// Decision is what a policy says.
type Decision struct {
	Allowed bool
	// Rule is the name of the rule that says so, and Where its place. They are empty
	// where none matched.
	Rule, Where string
	// Reason is why, in words.
	Reason string
}

// Err is the decision as an error that wraps xdp.ErrPermission, nil where it allows.
func (d Decision) Err(verb Verb, hook string) error {
	if d.Allowed {
		return nil
	}
	return &Error{Err: &xdp.Error{
		Op: string(verb), Hook: hook, Err: xdp.ErrPermission, Detail: d.Reason,
		Hint: "ask the administrator; `holdfast policy explain` shows what the policy allows",
	}, Rule: d.Rule}
}

// Error is a denial.
type Error struct {
	Err  *xdp.Error
	Rule string
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the denial as other packages know it.
func (e *Error) Unwrap() error { return e.Err }

// DecidedBy is the name of the rule that denies, empty where none allows.
func (e *Error) DecidedBy() string { return e.Rule }

// Decide tells whether the request is allowed. The first rule that matches decides.
func (p *Policy) Decide(s Subject, r Request) Decision {
	for _, rule := range p.Rules {
		if !rule.matches(s, r) {
			continue
		}
		d := Decision{Rule: rule.Name, Where: rule.Where}
		called := fmt.Sprintf("rule %q", rule.Name)
		if rule.Where != "" {
			called += " (" + rule.Where + ")"
		}
		if rule.Allow == nil {
			d.Reason = called + " denies it"
			return d
		}
		if why := rule.Allow.refuses(r); why != "" {
			d.Reason = fmt.Sprintf("%s does not allow it: %s", called, why)
			return d
		}
		d.Allowed, d.Reason = true, called+" allows it"
		return d
	}
	return Decision{Reason: "no rule of the policy matches"}
}

// matches tells whether the rule is about the request. What is not known fits where
// the rule denies, and nowhere else.
func (r *Rule) matches(s Subject, q Request) bool {
	unknown := r.Allow == nil
	m := r.Match
	one := func(patterns []string, value string) bool {
		return len(patterns) == 0 || value == "" && unknown || value != "" && anyFits(patterns, value)
	}
	cgroup := s.Cgroup
	if cgroup != path.Clean(cgroup) {
		cgroup = ""
	}
	groups := append([]int{s.GID}, s.Groups...)
	return (len(m.UID) == 0 || inAny(m.UID, s.UID)) &&
		(len(m.GID) == 0 || slices.ContainsFunc(groups, func(g int) bool { return inAny(m.GID, g) })) &&
		one(m.Unit, s.Unit) && one(m.Cgroup, cgroup) && one(m.Exe, s.Exe) &&
		(m.Contained == nil || *m.Contained == s.Contained) &&
		(len(m.Interface) == 0 || anyFits(m.Interface, q.Interface)) &&
		(m.Netns == "" || m.Netns == AnyNetns || m.Netns == HostNetns && q.HostNetns || m.Netns == OwnNetns && q.OwnNetns ||
			unknown && q.NetnsUnknown)
}

func inAny(ranges []Range, n int) bool {
	return slices.ContainsFunc(ranges, func(r Range) bool { return n >= 0 && r.has(uint32(n)) })
}

func anyFits(patterns []string, value string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return Fits(p, value) })
}

// Fits tells whether a value fits a pattern: * is any text without a slash, ? one such
// character, [a-z] one of some, and a last part ** is all that is below. A backslash
// takes what follows as it is.
func Fits(pattern, value string) bool {
	// Part by part, because [^a] of path.Match is any character, slashes too.
	parts, at := strings.Split(pattern, "/"), strings.Split(value, "/")
	if last := len(parts) - 1; last > 0 && parts[last] == "**" {
		if len(at) < len(parts) {
			return false
		}
		parts, at = parts[:last], at[:last]
	}
	return slices.EqualFunc(parts, at, func(pattern, value string) bool {
		ok, err := path.Match(pattern, value)
		return err == nil && ok
	})
}

// refuses tells what of the request is not allowed, "" where all is.
func (a *Allow) refuses(r Request) string {
	placed := r.Verb == Attach || r.Verb == Adopt
	switch {
	case !slices.Contains(a.Verbs, r.Verb):
		return fmt.Sprintf("it allows %s", words(a.Verbs))
	case r.Others && !a.Others:
		return "it belongs to somebody else"
	case r.Verb == Claim, r.Verb == Reload, r.Verb == Detach:
		return "" // which take nothing
	case len(a.Modes) > 0 && !a.hasMode(r.Mode):
		return fmt.Sprintf("the mode is %s, and it allows %s", r.Mode, words(a.Modes))
	case (r.Verb == Lock || r.Verb == Unlock):
		return ""
	case placed && len(a.Lifetimes) > 0 && !slices.Contains(a.Lifetimes, r.Lifetime):
		return fmt.Sprintf("the member would be %s, and it allows %s", r.Lifetime, words(a.Lifetimes))
	case a.Priority != nil && r.Priority != nil && !a.Priority.has(*r.Priority):
		return fmt.Sprintf("the priority is %d, and it allows %d to %d", *r.Priority, a.Priority.First, a.Priority.Last)
	case a.Priority != nil && r.Priority == nil && r.Beside:
		return "it must have a priority, and not be placed before or after another member"
	case r.Exclusive && !a.Exclusive:
		return "nobody may have the hook to itself"
	case r.Digest == "":
		return ""
	case len(a.Objects) > 0 && !slices.Contains(a.Objects, r.Digest):
		return fmt.Sprintf("the object %s is none of those that it names", r.Digest)
	}
	return a.Quota.refuses(r, placed)
}

// hasMode tells whether the mode is allowed. Auto comes to be native or generic, and so
// both must be.
func (a *Allow) hasMode(m xdp.Mode) bool {
	if m == xdp.Auto {
		return slices.Contains(a.Modes, xdp.Native) && slices.Contains(a.Modes, xdp.Generic)
	}
	return slices.Contains(a.Modes, m)
}

func (q *Quota) refuses(r Request, placed bool) string {
	more := func(what string, n uint64, most *uint64) string {
		if most == nil || n <= *most {
			return ""
		}
		return fmt.Sprintf("%s would be %d, and %d is the most", what, n, *most)
	}
	own := []string{
		more("the object's size", uint64(max(r.ObjectSize, 0)), q.ObjectSize),
		more("the number of instructions", uint64(max(r.Instructions, 0)), q.Instructions),
	}
	if q.counts() && r.Usage != nil {
		members, memory := r.Usage()
		if placed {
			members++
		}
		own = append(own,
			more("the number of members of this user", uint64(max(members, 0)), q.Members),
			more("the memory of all maps of this user", saturated(memory, r.MapMemory), q.MapMemory))
	}
	for _, s := range own {
		if s != "" {
			return s
		}
	}
	return ""
}

// counts tells whether the quota is of all that a user has.
func (q *Quota) counts() bool { return q.Members != nil || q.MapMemory != nil }

// Counts tells whether a rule has a quota of all that a user has, so that two requests
// of one at once could go beyond it.
func (p *Policy) Counts() bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.Allow != nil && r.Allow.Quota.counts() })
}

func saturated(a, b uint64) uint64 {
	if a+b < a {
		return ^uint64(0)
	}
	return a + b
}

func words[T any](all []T) string {
	var s []string
	for _, v := range all {
		s = append(s, fmt.Sprint(v))
	}
	return strings.Join(s, ", ")
}
