package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ErrFilter says that a filter can't be understood, or asks for too much.
var ErrFilter = errors.New("not a filter")

// Filter says which packets are meant. It is made of words, see [ParseFilter].
type Filter struct {
	text string
	// tests are groups; the last of each is marked. A packet matches that passes
	// each test of one group.
	tests []test
}

// String is the filter in the words that it was made of.
func (f *Filter) String() string { return f.text }

// ParseFilter reads a filter, in the words that tcpdump has made known:
//
//	udp and dst port 53 and src 10.0.0.0/8
//	not (tcp port 22 or arp)
//
// Protocols are ip, ip6, arp, tcp, udp, sctp, icmp, icmp6, "proto N" (a number of
// IANA's) and "ether proto N". The others are "host A", "net A/N", "port N" and
// "port N-M", with src or dst before them or for either; "src A" is a host or a
// net; "vlan" and "vlan N". They are joined by and, or, not and parentheses; not
// binds most, then and, which may be left out, then or. The empty text is all
// packets.
//
// A packet has no port where it is another fragment than the first, and what it has
// not is not equal to anything. Errors are ErrFilter.
func ParseFilter(s string) (*Filter, error) {
	p := parser{words: split(s)}
	if len(p.words) == 0 {
		return &Filter{}, nil
	}
	if len(p.words) > 1000 {
		return nil, fmt.Errorf("%w: it is too long", ErrFilter)
	}
	e, err := p.either()
	if err == nil && len(p.words) > 0 {
		err = fmt.Errorf("%q is not expected there", p.words[0])
	}
	if err != nil {
		return nil, fmt.Errorf("%q is %w: %w", s, ErrFilter, err)
	}
	f := &Filter{text: s}
	groups, ok := e.groups(false)
	for _, g := range groups {
		for i, t := range g {
			if i == len(g)-1 {
				t.Flags |= flagLast
			}
			f.tests = append(f.tests, t)
		}
	}
	if !ok || len(f.tests) > maxTests {
		return nil, fmt.Errorf("%q is %w that the kernel could be given: written out it would be more than %d tests; leave something out", s, ErrFilter, maxTests)
	}
	return f, nil
}

// split makes words of the text; parentheses are words of their own.
func split(s string) []string {
	s = strings.NewReplacer("(", " ( ", ")", " ) ", "!", " not ", "&&", " and ", "||", " or ").Replace(s)
	return strings.Fields(s)
}

// expression is one of these: a test, or operands joined by or or by and, or the
// contrary of its only operand.
type expression struct {
	test     *test
	operands []*expression
	or, not  bool
}

// groups writes the expression out as alternatives of tests which are all to be
// true. It is not ok where these would be too many.
func (e *expression) groups(contrary bool) (all [][]test, ok bool) {
	if e.test != nil {
		t := *e.test
		if contrary {
			t.Flags ^= flagNot
		}
		return [][]test{{t}}, true
	}
	if e.not {
		return e.operands[0].groups(!contrary)
	}
	if e.or != contrary {
		for _, o := range e.operands {
			g, ok := o.groups(contrary)
			if !ok || len(all)+len(g) > maxTests {
				return nil, false
			}
			all = append(all, g...)
		}
		return all, true
	}
	all = [][]test{nil}
	for _, o := range e.operands {
		g, ok := o.groups(contrary)
		if !ok || len(all)*len(g) > maxTests {
			return nil, false
		}
		var product [][]test
		for _, a := range all {
			for _, b := range g {
				if len(a)+len(b) > maxTests {
					return nil, false
				}
				product = append(product, append(append([]test(nil), a...), b...))
			}
		}
		all = product
	}
	return all, true
}

// parser takes words from the front.
type parser struct {
	words []string
	depth int
}

func (p *parser) peek() string {
	if len(p.words) == 0 {
		return ""
	}
	return p.words[0]
}

func (p *parser) take(word string) bool {
	if p.peek() != word {
		return false
	}
	p.words = p.words[1:]
	return true
}

var errEnd = errors.New("something is missing at its end")

func (p *parser) next() (string, error) {
	if len(p.words) == 0 {
		return "", errEnd
	}
	w := p.words[0]
	p.words = p.words[1:]
	return w, nil
}

func (p *parser) either() (*expression, error) {
	e := &expression{or: true}
	for {
		o, err := p.both()
		if err != nil {
			return nil, err
		}
		e.operands = append(e.operands, o)
		if !p.take("or") {
			return e, nil
		}
	}
}

func (p *parser) both() (*expression, error) {
	e := &expression{}
	for {
		o, err := p.one()
		if err != nil {
			return nil, err
		}
		e.operands = append(e.operands, o)
		switch {
		case p.take("and"):
		case p.peek() == "" || p.peek() == "or" || p.peek() == ")":
			return e, nil
		}
	}
}

// deepest is how far parentheses and nots may be nested.
const deepest = 50

func (p *parser) one() (*expression, error) {
	if p.depth++; p.depth > deepest {
		return nil, errors.New("it is nested too deeply")
	}
	defer func() { p.depth-- }()
	switch {
	case p.take("not"):
		e, err := p.one()
		return &expression{not: true, operands: []*expression{e}}, err
	case p.take("("):
		e, err := p.either()
		if err == nil && !p.take(")") {
			err = errors.New(") is missing")
		}
		return e, err
	}
	return p.primitive()
}

// Protocols by their names: of Ethernet, and of IP.
var (
	etherTypes = map[string]uint16{"ip": 0x0800, "arp": 0x0806, "ip6": 0x86dd}
	protocols  = map[string]uint16{
		"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmp6": 58, "sctp": 132,
	}
)

func (p *parser) primitive() (*expression, error) {
	word, err := p.next()
	if err != nil {
		return nil, err
	}
	if n, ok := etherTypes[word]; ok {
		return is(etherType, n, n), nil
	}
	if n, ok := protocols[word]; ok {
		return is(protocol, n, n), nil
	}
	switch word {
	case "proto":
		word, err := p.next()
		if err != nil {
			return nil, err
		}
		if n, ok := protocols[word]; ok {
			return is(protocol, n, n), nil
		}
		n, err := number(word, 255)
		return is(protocol, n, n), err
	case "ether":
		if !p.take("proto") {
			return nil, errors.New("after ether comes proto and a number")
		}
		word, err := p.next()
		if err != nil {
			return nil, err
		}
		if n, ok := etherTypes[word]; ok {
			return is(etherType, n, n), nil
		}
		n, err := number(word, 65535)
		return is(etherType, n, n), err
	case "vlan":
		if w := p.peek(); w == "" || w[0] < '0' || w[0] > '9' {
			return is(vlan, 0, 4095), nil
		}
		word, _ := p.next()
		n, err := number(word, 4095)
		return is(vlan, n, n), err
	case "src", "dst":
		what, err := p.next()
		if err != nil {
			return nil, err
		}
		switch what {
		case "host", "net", "port":
			return p.end(what, word)
		}
		prefix, err := parsePrefix(what)
		if err != nil {
			return nil, err
		}
		return address(prefix, word), nil
	case "host", "net", "port":
		return p.end(word, "")
	}
	return nil, fmt.Errorf("%q is no word that it knows", word)
}

// end reads what a host, net or port is, at this end of the packet's way, or at
// either.
func (p *parser) end(what, side string) (*expression, error) {
	word, err := p.next()
	if err != nil {
		return nil, err
	}
	if what == "port" {
		from, to, ranges := strings.Cut(word, "-")
		lowest, err := number(from, 65535)
		if err != nil {
			return nil, err
		}
		highest := lowest
		if ranges {
			if highest, err = number(to, 65535); err != nil {
				return nil, err
			}
		}
		if lowest > highest {
			return nil, fmt.Errorf("%q ends before it begins", word)
		}
		return sides(side, is(sourcePort, lowest, highest), is(destinationPort, lowest, highest)), nil
	}
	prefix, err := parsePrefix(word)
	if err != nil {
		return nil, err
	}
	if what == "host" && !prefix.IsSingleIP() {
		return nil, fmt.Errorf("%q is a net; a host is one address", word)
	}
	return address(prefix, side), nil
}

func sides(side string, source, destination *expression) *expression {
	switch side {
	case "src":
		return source
	case "dst":
		return destination
	}
	return &expression{or: true, operands: []*expression{source, destination}}
}

func is(f field, lowest, highest uint16) *expression {
	return &expression{test: &test{Field: f, Lowest: lowest, Highest: highest}}
}

func address(prefix netip.Prefix, side string) *expression {
	source, destination := test{Field: source4}, test{Field: destination4}
	if prefix.Addr().Is6() {
		source.Field, destination.Field = source6, destination6
	}
	for _, t := range []*test{&source, &destination} {
		copy(t.Address[:], prefix.Masked().Addr().AsSlice())
		for i := range prefix.Bits() {
			t.Mask[i/8] |= 0x80 >> (i % 8)
		}
	}
	return sides(side, &expression{test: &source}, &expression{test: &destination})
}

func parsePrefix(s string) (netip.Prefix, error) {
	if prefix, err := netip.ParsePrefix(s); err == nil {
		return prefix, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a net", s)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func number(s string, highest uint64) (uint16, error) {
	n, err := strconv.ParseUint(s, 0, 16)
	if err != nil || n > highest {
		return 0, fmt.Errorf("%q is no number from 0 to %d", s, highest)
	}
	return uint16(n), nil
}
