// Package varlink is the Varlink protocol over Unix sockets, for servers and for
// clients: one JSON object and a NUL byte a message, interfaces that describe
// themselves, replies that go on coming, and descriptors.
//
// Descriptors are what Varlink leaves open. They travel with SCM_RIGHTS beside the
// message that names them, by their number in it: the call of sendmsg that carries
// them carries the beginning of that message, and nothing of another one. A message
// with more of them than one call takes has the others with its next bytes.
//
// The server keeps a bounded amount for each client, whatever that sends, or does not
// read, and hangs up on one that goes beyond. Calls of one connection are handled in
// their order, one at a time.
package varlink
