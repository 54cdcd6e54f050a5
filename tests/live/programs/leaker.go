package main

import (
	"os"
	"syscall"
)

//go:noinline
func loseCookie(key uintptr) uintptr {
	semid, _, _ := syscall.RawSyscall(syscall.SYS_SEMGET, 0x0d4d0000|key, 1, 0600|01000|02000)
	syscall.RawSyscall6(syscall.SYS_SEMCTL, semid, 0, 16, 1, 0, 0)
	return semid
}

//go:noinline
func throughGo(depth int) uintptr {
	if depth > 0 {
		return throughGo(depth-1) + 1
	}
	return loseCookie(0x4747)
}

func main() {
	done := make(chan uintptr)
	go func() { done <- throughGo(3) }()
	<-done
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
}
