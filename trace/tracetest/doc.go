// Package tracetest follows packets on a real kernel: what a trace tells of the
// members that each packet met, on chains of every engine, and that it leaves
// nothing behind.
package tracetest
