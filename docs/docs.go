// Package docs holds the documentation, and tests that what it says can be
// done can be done: that the commands in it exist with the flags that they are
// given, its links lead somewhere, and its Go code is code that compiles. In
// docs/docstest, what the tutorial and the how-to pages say is done.
package docs

import "embed"

//go:generate go run ../internal/cli/reference/write -markdown reference

// Files are the pages, with what they show.
//
//go:embed *.md *.svg *.json howto reference
var Files embed.FS
