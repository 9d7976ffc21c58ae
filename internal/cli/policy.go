package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-bpf/holdfast/chain"
	"github.com/holdfast-bpf/holdfast/chain/owned"
	"github.com/holdfast-bpf/holdfast/policy"
	"github.com/holdfast-bpf/holdfast/xdp"
)

func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Check what the daemon lets applications do",
		Long: `Check the policy of 'holdfast daemon': the rules by which the administrator lets
applications attach. They are in policy.yaml, and in policy.d/*.yaml behind it.
The first rule that matches decides, and what no rule allows is denied. Without a
file root may do all, outside of containers, and nobody else anything.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q%s", args[0], suggest(c, args[0]))
			}
			return c.Help()
		},
	}
	c.AddCommand(a.policyCheckCommand(), a.policyExplainCommand())
	return c
}

func (a *app) policyCheckCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "check [FILE...]",
		Short: "Tell whether the policy can be read, and its rules in their order",
		Long: `Read the files, or the policy that a daemon would read, and list the rules in the
order that they are tried in. What is wrong is said with file, line and column.`,
		Example: `  holdfast policy check
  holdfast policy check policy.yaml`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				p, err := policy.Load(dir)
				if err != nil {
					return err
				}
				return a.printRules(p)
			}
			if c.Flags().Changed("config") {
				return usagef("FILE and --config exclude each other")
			}
			p := &policy.Policy{}
			for _, name := range args {
				one, err := policy.ReadFile(name)
				if err != nil {
					return err
				}
				p.Rules = append(p.Rules, one.Rules...)
			}
			return a.printRules(p)
		},
	}
	c.Flags().StringVar(&dir, "config", policy.Dir, "directory of the policy")
	return c
}

// ruleResult is a rule, for scripts.
type ruleResult struct {
	Name  string        `json:"name"`
	Where string        `json:"where,omitempty"`
	Deny  bool          `json:"deny,omitempty"`
	Verbs []policy.Verb `json:"verbs,omitempty"`
}

func (a *app) printRules(p *policy.Policy) error {
	results := []ruleResult{}
	var rows [][]string
	for i, r := range p.Rules {
		result := ruleResult{Name: r.Name, Where: r.Where, Deny: r.Allow == nil}
		what := "denies"
		if r.Allow != nil {
			result.Verbs = r.Allow.Verbs
			what = "allows " + strings.Trim(strings.ReplaceAll(fmt.Sprint(r.Allow.Verbs), " ", ", "), "[]")
		}
		results = append(results, result)
		rows = append(rows, []string{strconv.Itoa(i + 1), r.Name, what, cmp.Or(r.Where, "built in, as there is no file")})
	}
	if a.json() {
		return a.printJSON("policy", results)
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(a.env.Stdout, "there are no rules: nobody may do anything")
		return err
	}
	a.table([]string{"", "RULE", "DOES", "WHERE"}, rows)
	return nil
}

func (a *app) policyExplainCommand() *cobra.Command {
	var dir, file, as, mode, lifetime, netns string
	var priority uint32
	var exclusive, others bool
	c := &cobra.Command{
		Use:   "explain --as WHO IF VERB",
		Short: "Tell what the policy says to a request, and which rule says so",
		Long: `Tell what the policy says if somebody asks for something at an interface, which
need not be there. VERB is attach, replace, detach, set, lock, unlock, adopt, claim
or reload. Quotas and digests are not looked at. The exit code is 0 if it is
allowed, and 5 if not.

A claim is of somebody else's lease, in a network namespace that is not known; a
reload is about no interface, whichever is given.

WHO is what the kernel would say of the process: uid=1000, and with commas between
them gid=, group= (again for each), unit=, cgroup=, exe= and contained. It is in no
group that is not named, and a unit, cgroup or exe that is left out is not known.`,
		Example: `  holdfast policy explain --as uid=1000 eth0 attach
  holdfast policy explain --as uid=7,unit=a.service eth0 attach --priority 10`,
		Args: exactly("IF", "VERB"), ValidArgsFunction: completeRequest,
		RunE: func(c *cobra.Command, args []string) error {
			s, err := parseSubject(as)
			if err != nil {
				return err
			}
			r := policy.Request{Interface: args[0], Verb: policy.Verb(args[1]), Lifetime: owned.Lifetime(lifetime), Exclusive: exclusive, Others: others}
			if err := r.Mode.UnmarshalText([]byte(mode)); err != nil {
				return usagef("--mode %q: it is auto, native, generic or offload", mode)
			}
			switch netns {
			case "host":
				r.HostNetns, r.OwnNetns = true, true
			case "own":
				r.OwnNetns = true
			case "other":
			default:
				return usagef("--netns %q: it is host, own or other", netns)
			}
			if err := xdp.CheckName(r.Interface); err != nil {
				return usagef("%s", err)
			}
			if r.Lifetime != owned.Held && r.Lifetime != owned.Permanent {
				return usagef("--lifetime %q: it is held or permanent", lifetime)
			}
			if !slices.Contains(policy.Verbs, r.Verb) {
				return usagef("there is no verb %q: there are %s", args[1], strings.Trim(fmt.Sprint(policy.Verbs), "[]"))
			}
			if c.Flags().Changed("priority") {
				r.Priority = &priority
			}
			read := func() (*policy.Policy, error) { return policy.Load(dir) }
			if c.Flags().Changed("file") {
				if c.Flags().Changed("config") {
					return usagef("--file and --config exclude each other")
				}
				read = func() (*policy.Policy, error) { return policy.ReadFile(file) }
			}
			p, err := read()
			if err != nil {
				return err
			}
			return a.printDecision(p.Decide(s, asTheDaemon(r)))
		},
	}
	flags := c.Flags()
	flags.StringVar(&as, "as", "", "who asks")
	flags.StringVarP(&file, "file", "f", "", "a file of the policy, instead of the directory's")
	flags.StringVar(&dir, "config", policy.Dir, "directory of the policy")
	flags.StringVar(&mode, "mode", "auto", "mode of the hook: auto, native, generic or offload")
	flags.StringVar(&lifetime, "lifetime", "permanent", "lifetime of the member: held or permanent")
	flags.StringVar(&netns, "netns", "host", "network namespace of the interface: host (and of who asks), own or other")
	flags.Uint32Var(&priority, "priority", 0, "priority of the member, which an attach or adopt without one has from its object; else 50")
	flags.BoolVar(&exclusive, "exclusive", false, "whether the hook is asked for to itself")
	flags.BoolVar(&others, "others", false, "whether it is about what somebody else made")
	completeFlag(c, "mode", "auto", "native", "generic", "offload")
	completeFlag(c, "lifetime", "held", "permanent")
	completeFlag(c, "netns", "host", "own", "other")
	return c
}

// asTheDaemon is the request as the daemon would ask it.
func asTheDaemon(r policy.Request) policy.Request {
	switch r.Verb {
	case policy.Attach, policy.Adopt:
		if r.Priority == nil {
			r.Priority = new(chain.DefaultPriority)
		}
	case policy.Claim: // it does not ask for one's own, and finds the hook by a descriptor
		r.Others, r.HostNetns, r.OwnNetns, r.NetnsUnknown = true, false, false, true
	case policy.Reload:
		return policy.Request{Verb: r.Verb}
	}
	return r
}

// completeRequest completes an interface and a verb.
func completeRequest(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return completeInterface(c, args, word)
	}
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var verbs []string
	for _, v := range policy.Verbs {
		verbs = append(verbs, string(v))
	}
	return verbs, cobra.ShellCompDirectiveNoFileComp
}

// parseSubject reads who asks.
func parseSubject(as string) (s policy.Subject, err error) {
	if as == "" {
		return s, usagef("--as is missing; give uid=1000, and more with commas between them")
	}
	s.UID, s.GID = -1, -1
	given := map[string]bool{}
	for _, part := range strings.Split(as, ",") {
		key, value, ok := strings.Cut(part, "=")
		if part == "contained" {
			s.Contained = true
			continue
		}
		if !ok || value == "" {
			return s, usagef("--as %q: %q is no part of it; give uid=1000, and more with commas between them", as, part)
		}
		if given[key] && key != "group" {
			return s, usagef("--as %q: %s is there twice", as, key)
		}
		given[key] = true
		number := 0
		switch key {
		case "uid", "gid", "group":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return s, usagef("--as %q: %s is a number", as, key)
			}
			number = int(n)
		case "cgroup", "exe":
			if !strings.HasPrefix(value, "/") {
				return s, usagef("--as %q: %s is a path that begins with a slash", as, key)
			}
		}
		switch key {
		case "uid":
			s.UID = number
		case "gid":
			s.GID = number
		case "group":
			s.Groups = append(s.Groups, number)
		case "unit":
			s.Unit = value
		case "cgroup":
			s.Cgroup = value
		case "exe":
			s.Exe = value
		default:
			return s, usagef("--as %q: there is no %q; there are uid, gid, group, unit, cgroup, exe and contained", as, key)
		}
	}
	if s.UID < 0 {
		return s, usagef("--as %q: uid is missing", as)
	}
	return s, nil
}

// decisionResult is a decision, for scripts.
type decisionResult struct {
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule,omitempty"`
	Where   string `json:"where,omitempty"`
	Reason  string `json:"reason"`
}

func (a *app) printDecision(d policy.Decision) error {
	if a.json() {
		if err := a.printJSON("decision", decisionResult(d)); err != nil {
			return err
		}
	} else {
		word := "denied"
		if d.Allowed {
			word = "allowed"
		}
		if _, err := fmt.Fprintf(a.env.Stdout, "%s: %s\n", word, d.Reason); err != nil {
			return err
		}
	}
	if !d.Allowed {
		return &statusError{exitPermission}
	}
	return nil
}
