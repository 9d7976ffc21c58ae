// Package docs holds the documentation, and tests that what it says can be
// done can be done: that the commands in it exist with the flags that they are
// given, its links lead somewhere, and its Go code is code that compiles.
package docs

//go:generate go run ../internal/cli/reference/write -markdown reference
