//go:build unix

package main

import (
	"os/signal"
	"syscall"
)

func init() { ignoreBackgroundReads = func() { signal.Ignore(syscall.SIGTTIN) } }
