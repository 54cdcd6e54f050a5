package main

/*
#include <sys/ipc.h>
#include <sys/sem.h>
static __thread long before[16];
__attribute__((noinline)) static int lose_cookie(int key)
{
	int semid = semget(0x0d4d0000 | key, 1, 0600 | IPC_CREAT | IPC_EXCL);
	before[key & 15]++;
	semctl(semid, 0, SETVAL, 1);
	return semid;
}
*/
import "C"

import (
	"os"
	"syscall"
)

//go:noinline
func throughGo(depth int) int {
	var room [1024]byte
	room[depth] = 1
	if depth > 0 {
		return throughGo(depth-1) + int(room[0])
	}
	return int(C.lose_cookie(0x4748))
}

func main() {
	done := make(chan int)
	go func() { done <- throughGo(DEPTH) }()
	<-done
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
}
