// Package fuzz holds the tests of package xdp that need neither root nor an
// interface of their own: names, modes, texts.
package fuzz
