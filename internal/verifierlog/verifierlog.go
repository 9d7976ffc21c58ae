// Package verifierlog finds in what the kernel's verifier says the line that
// people want to read. It is pure.
package verifierlog

import (
	"slices"
	"strings"
)

// Telling picks from the verifier's log the line that says what is wrong:
// the last one that is neither a count nor the dump of a register.
func Telling(log []string) string {
	noise := []string{
		"processed ", "verification time ", "stack depth ", "max_states_per_insn ",
		"mark_precise: ", "insns processed ",
	}
	isNoise := func(line string) bool {
		// "subprog 2 (filter) global insns_self 10 ..." is what Linux 7.3 counts.
		if strings.HasPrefix(line, "subprog ") && strings.Contains(line, " insns_self ") {
			return true
		}
		return line == "" || slices.ContainsFunc(noise, func(p string) bool { return strings.HasPrefix(line, p) })
	}
	// Newer kernels (7.3) explain on many lines what they have said above.
	if i := slices.IndexFunc(log, func(line string) bool { return strings.HasPrefix(line, "Verification failed:") }); i > 0 {
		log = log[:i]
	}
	for i := len(log) - 1; i >= 0; i-- {
		line := strings.TrimSpace(log[i])
		if isNoise(line) {
			continue
		}
		// "R1 offset is outside of the packet" is only half the sentence; the
		// line before has the other half, unless it shows an instruction
		// ("3: (95) exit") or the source of one ("; return x;").
		if i > 0 && isRegister(line) {
			before := strings.TrimSpace(log[i-1])
			if !isNoise(before) && !isInstruction(before) && !strings.HasPrefix(before, ";") {
				return before + ": " + line
			}
		}
		return line
	}
	return ""
}

// Source is the line of C, if the object has them, that the verifier came
// to last: "return data[13]; @ filter.c:12", before Linux 6.9 without the place.
func Source(log []string) string {
	for i := len(log) - 1; i >= 0; i-- {
		if source, ok := strings.CutPrefix(log[i], "; "); ok {
			return strings.TrimSpace(source)
		}
	}
	return ""
}

func isRegister(line string) bool {
	return len(line) > 2 && line[0] == 'R' && line[1] >= '0' && line[1] <= '9'
}

func isInstruction(line string) bool {
	digits := strings.IndexFunc(line, func(r rune) bool { return r < '0' || r > '9' })
	return digits > 0 && line[digits] == ':'
}
