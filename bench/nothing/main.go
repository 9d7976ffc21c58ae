// Command nothing does nothing: what it takes, every command in Go takes.
package main

func main() {}
