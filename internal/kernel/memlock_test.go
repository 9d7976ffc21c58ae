package kernel

import "testing"

func TestLockedMemoryIsChargedBeforeLinux511(t *testing.T) {
	for release, want := range map[string]bool{
		"4.19.0-27-amd64": true,
		"5.4":             true,
		"5.10.0-30-amd64": true,
		"5.11.0":          false,
		"5.15.1":          false,
		"6.1.0-18-amd64":  false,
		"6.18.44+deb13":   false,
		"":                false,
		"unheard of":      false,
	} {
		if got := chargesLockedMemory(release); got != want {
			t.Errorf("%q: got %t, want %t", release, got, want)
		}
	}
}
