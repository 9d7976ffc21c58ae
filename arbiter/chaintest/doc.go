// Package chaintest tests the chains of package arbiter on a real kernel.
package chaintest
