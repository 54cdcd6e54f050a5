#include <sys/ipc.h>
#include <sys/sem.h>
#include <signal.h>
#include <unistd.h>
#ifndef DEPTH
#define DEPTH 0
#endif
__attribute__((noinline)) int lose_cookie(int key)
{
    int semid = semget(0x0d4d0000 | key, 1, 0600 | IPC_CREAT | IPC_EXCL);
    semctl(semid, 0, SETVAL, 1);
    __asm__ volatile ("" ::: "memory");
    return semid;
}
__attribute__((noinline)) int sink(int depth, int key)
{
    volatile char room[1024];
    room[0] = (char)depth;
    int semid = depth > 0 ? sink(depth - 1, key) : lose_cookie(key);
    return semid + room[0] - (char)depth;
}
__attribute__((noinline)) int FIRST(int key)
{
    int semid = sink(DEPTH, key);
    __asm__ volatile ("" ::: "memory");
    return semid;
}
int main(int count, char **words)
{
    (void)words;
    int semid = FIRST(0x4700 + count);
    kill(getpid(), SIGKILL);
    return semid;
}
