// Package installtest installs Holdfast's package on a clean Debian system, upgrades
// it while packets flow, and removes it.
package installtest
