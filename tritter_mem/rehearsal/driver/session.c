// What the processes of a rehearsal share: who has how much of which device.
//
// A file that they all map, so that what a process took stays readable when it is killed, and
// processes on one device take from the same memory. Without a rehearsal a process has it for itself.
#define _GNU_SOURCE
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLOTS 2048
#define MAGIC 0x7472697474657231ull

struct session {
    uint64_t magic, slots, slot_bytes, ready;
    pthread_mutex_t lock;
    char padding[96 - sizeof(pthread_mutex_t) % 96];
    struct slot table[SLOTS];
};

static struct session *session;
static struct slot *own;
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;

const char *session_folder(void) {
    const char *folder = getenv("STANDIN_SESSION");
    return folder && *folder ? folder : NULL;
}

static void make_lock(void) {
    pthread_mutexattr_t shared;
    pthread_mutexattr_init(&shared);
    pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&shared, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&session->lock, &shared);
}

// The file is made by the first that locks it; the kernel's lock orders those who come together.
static void *map_file(void) {
    const char *folder = session_folder();
    char path[4096];
    if (!folder) return MAP_FAILED;
    snprintf(path, sizeof path, "%s/processes", folder);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) return MAP_FAILED;
    if (lockf(file, F_LOCK, 0) || ftruncate(file, sizeof *session)) return close(file), MAP_FAILED;
    session = mmap(NULL, sizeof *session, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (session != MAP_FAILED && session->magic != MAGIC) {
        make_lock();
        session->slots = SLOTS, session->slot_bytes = sizeof(struct slot);
        session->ready = offsetof(struct session, table);
        session->magic = MAGIC;
    }
    lockf(file, F_ULOCK, 0);
    close(file);
    return session;
}

static void open_session(void) {
    pthread_mutex_lock(&opening);
    if (!session && map_file() == MAP_FAILED) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        session = mmap(NULL, sizeof *session, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (session == MAP_FAILED) abort();
        make_lock();
        session->slots = SLOTS;
    }
    pthread_mutex_unlock(&opening);
}

static void lock(void) {
    if (!session) open_session();
    if (pthread_mutex_lock(&session->lock) == EOWNERDEAD) pthread_mutex_consistent(&session->lock);
}
static void unlock(void) { pthread_mutex_unlock(&session->lock); }

static int is_gone(const struct slot *slot) { return kill((pid_t)slot->pid, 0) && errno == ESRCH; }

// A dead process has nothing any more; its peaks stay.
static void bury(struct slot *slot) {
    if (slot->in_use && is_gone(slot)) memset(slot->used, 0, sizeof slot->used), slot->in_use = 0;
}

static uint64_t highest(const struct slot *slot) {
    uint64_t found = 0;
    for (int device = 0; device < MOST_DEVICES; device++)
        if (slot->peak[device] > found) found = slot->peak[device];
    return found;
}

// The slot of this process, also after fork; where all are taken, that of the smallest that died.
static struct slot *find_slot(void) {
    uint32_t pid = (uint32_t)getpid();
    if (own && own->pid == pid && own->in_use) return own;
    struct slot *smallest = NULL;
    for (size_t at = 0; at < SLOTS; at++) {
        struct slot *slot = &session->table[at];
        if (!slot->pid) { smallest = slot; break; }
        bury(slot);
        if (!slot->in_use && (!smallest || highest(slot) < highest(smallest))) smallest = slot;
    }
    if (!smallest) abort();
    memset(smallest, 0, sizeof *smallest);
    smallest->pid = pid, smallest->in_use = 1;
    return own = smallest;
}

struct slot *session_slot(void) {
    lock();
    struct slot *slot = find_slot();
    unlock();
    return slot;
}

static size_t used_by_living(int device) {
    size_t sum = 0;
    for (size_t at = 0; at < SLOTS && session->table[at].pid; at++) {
        if (session->table[at].used[device]) bury(&session->table[at]);
        sum += session->table[at].used[device];
    }
    return sum;
}

size_t session_used(int device) {
    lock();
    size_t used = used_by_living(device);
    unlock();
    return used;
}

int session_take(int device, size_t bytes, size_t limit) {
    lock();
    struct slot *slot = find_slot();
    int fits = used_by_living(device) + bytes <= limit;
    if (fits) slot->used[device] += bytes;
    if (slot->used[device] > slot->peak[device]) slot->peak[device] = slot->used[device];
    unlock();
    return fits;
}

void session_give_back(int device, size_t bytes) {
    lock();
    struct slot *slot = find_slot();
    slot->used[device] -= bytes < slot->used[device] ? bytes : slot->used[device];
    unlock();
}

size_t session_processes(int device, uint32_t *pids, uint64_t *used, size_t room) {
    size_t found = 0;
    lock();
    used_by_living(device);
    for (size_t at = 0; at < SLOTS && session->table[at].pid; at++) {
        const struct slot *slot = &session->table[at];
        if (!slot->in_use || !slot->used[device]) continue;
        if (found < room) pids[found] = slot->pid, used[found] = slot->used[device];
        found++;
    }
    unlock();
    return found;
}

// A function without an implementation was called: a line in a file, once a process and function.
static int is_first(const char *function) {
    static const char *noted[512];
    static size_t count;
    for (size_t at = 0; at < count; at++)
        if (noted[at] == function) return 0;
    if (count < sizeof noted / sizeof *noted) noted[count++] = function;
    return 1;
}
static void write_note(const char *function) {
    char path[4096], line[256];
    if (!session_folder()) return;
    snprintf(path, sizeof path, "%s/stubs", session_folder());
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0) return;
    int length = snprintf(line, sizeof line, "%s\n", function);
    if (write(file, line, length) != length) perror(path);
    close(file);
}

void session_note_stub(const char *function) {
    if (is_first(function)) write_note(function);
}

// What a function without an implementation returns: it fails, and says so once.
long session_refuse(const char *function, long code) {
    if (!is_first(function)) return code;
    write_note(function);
    fprintf(stderr, "tritter-mem: %s is not in the stand-ins for CUDA's libraries, and failed\n",
            function);
    return code;
}
