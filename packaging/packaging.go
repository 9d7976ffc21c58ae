// Package packaging has what is installed beside the command, for the tests that
// check it.
package packaging

import (
	_ "embed" // for the files below
	"strings"
)

// Service and Socket are the units of systemd.
var (
	//go:embed systemd/holdfast.service
	Service string
	//go:embed systemd/holdfast.socket
	Socket string
)

// Values are what a unit has for a key, in order.
func Values(unit, key string) []string {
	var values []string
	for line := range strings.Lines(unit) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && name == key {
			values = append(values, value)
		}
	}
	return values
}
