package verifierlog

import "testing"

func TestTheTellingLineOfAVerifierLogIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		log  []string
		want string
	}{
		"none":        {nil, ""},
		"only counts": {[]string{"processed 4 insns (limit 1000000)", ""}, ""},
		"before the counts": {[]string{
			"0: (85) call bpf_trace_printk#6",
			"cannot call GPL-restricted function from non-GPL compatible program",
			"processed 1 insns (limit 1000000) max_states_per_insn 0",
			"verification time 12 usec", "stack depth 0",
		}, "cannot call GPL-restricted function from non-GPL compatible program"},
		"before the counts of each function": {[]string{
			"BPF program is too large. Processed 1000001 insn",
			"processed 1000001 insns (limit 1000000) max_states_per_insn 4",
			"subprog 0 (main) global insns_self 4 insns_total 4 stack 0",
			"subprog 1 (called) insns_self 999997 insns_total 999997 stack 16",
		}, "BPF program is too large. Processed 1000001 insn"},
		"with the half before": {[]string{
			"3: (71) r0 = *(u8 *)(r1 +13)",
			"invalid access to packet, off=13 size=1, R1(id=0,off=13,r=0)",
			"R1 offset is outside of the packet",
			"processed 2 insns",
		}, "invalid access to packet, off=13 size=1, R1(id=0,off=13,r=0): R1 offset is outside of the packet"},
		"without the instruction before": {[]string{"0: (95) exit", "R0 !read_ok"}, "R0 !read_ok"},
		"before the explanation of newer kernels": {[]string{
			"3: (85) call bpf_trace_printk#6",
			"cannot call GPL-restricted function from non-GPL compatible program", "",
			"Verification failed: Policy: Operation is not allowed", "",
			"Suggestion:", "  Use a GPL-compatible license, or another one for non-GPL", "  programs.", "",
			"processed 3 insns (limit 1000000)",
		}, "cannot call GPL-restricted function from non-GPL compatible program"},
		"nothing before the explanation": {[]string{"Verification failed: Policy"}, "Verification failed: Policy"},
		"without the source before":      {[]string{"; return x;", "R0 !read_ok"}, "R0 !read_ok"},
	} {
		if got := Telling(c.log); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
