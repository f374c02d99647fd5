// The host's own memory: files larger than it are mapped all the same.
//
// Checkpoints are mapped privately, so that the kernel sets their whole size aside in case they are
// written, and refuses where the host is smaller. They are only copied to the device from, and large
// copies are left out, so nothing needs to be set aside.
#define _GNU_SOURCE
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static void *map(void *address, size_t bytes, int may, int flags, int file, off_t offset) {
    if (file >= 0 && (flags & MAP_PRIVATE)) flags |= MAP_NORESERVE;
    return (void *)syscall(SYS_mmap, address, bytes, may, flags, file, offset);
}
void *mmap(void *address, size_t bytes, int may, int flags, int file, off_t offset) {
    return map(address, bytes, may, flags, file, offset);
}
void *mmap64(void *address, size_t bytes, int may, int flags, int file, off_t offset) {
    return map(address, bytes, may, flags, file, offset);
}
