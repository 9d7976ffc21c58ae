// Package clitest runs the command `holdfast` as people do, as a process in a
// network namespace, and looks at what the kernel has afterwards.
package clitest
