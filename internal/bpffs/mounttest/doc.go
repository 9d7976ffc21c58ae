// Package mounttest holds the tests of package bpffs that mount one.
package mounttest
