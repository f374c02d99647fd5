// A stand-in for libnccl.so.2: ranks exchange small values truly, and keep in step.
//
// The ranks of a communicator map one file. A rank puts what it contributes into a ring there and,
// where the operation is small, waits for the others and takes what they put. What is larger than
// CARRIED_BYTES is weights, gradients or activations, which nothing computed: it is not carried, and
// its ranks are at most RING operations apart. Bytes, of which pickled objects are made, are carried
// up to CARRIED_OBJECT_BYTES.
#define _GNU_SOURCE
#include "device.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CARRIED_BYTES ((size_t)64 << 10)
#define CARRIED_OBJECT_BYTES ((size_t)64 << 20)
#define RING 8
#define VERSION 22703

enum { SUCCESS, UNHANDLED_CUDA, SYSTEM, INTERNAL, INVALID_ARGUMENT, INVALID_USAGE };
enum { SUM, PROD, MAX, MIN, AVG, OWN_OPS = 5 };
enum { INT8, UINT8, INT32, UINT32, INT64, UINT64, FLOAT16, FLOAT32, FLOAT64, BFLOAT16, E4M3, E5M2 };
static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};

typedef struct { char name[128]; } ncclUniqueId;

struct rank_state {  // each is written by its rank alone
    _Atomic uint64_t arrived, taken;
    _Atomic unsigned char knowledge[RING];  // of what it put there
    char padding[40];
};
// Of each pair of ranks, how many messages were sent and received.
struct mailbox {
    _Atomic uint64_t sent, received;
    _Atomic unsigned char knowledge[RING];
};
struct comm {
    int ranks, rank, device;
    uint64_t operations, splits;
    char name[96];
    void *memory;
    size_t bytes;
    struct rank_state *states;
    struct mailbox *mailboxes;
    char *rings, *letters;
    _Atomic int aborted;
};
typedef struct comm *ncclComm_t;

// How well the values are known that this thread contributes, and the worst of those that it took:
// 0 known, 1 assumed, 2 unknown. `inside/true_values.py` sets the one and asks for the other.
static __thread unsigned char contributed, received;
void tritter_standin_contributes(int knowledge) { contributed = knowledge, received = 0; }
int tritter_standin_received(void) { return received; }

enum kind { ALL_REDUCE, BROADCAST, REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, SEND, RECEIVE };
struct operation {
    enum kind kind;
    const char *from;
    char *to;
    size_t count;
    int type, op, peer;
    struct comm *comm;
    uint64_t number;
    int carried;
};

static void folder_of(char *path, size_t length, const char *name) {
    const char *session = session_folder();
    snprintf(path, length, "%s/nccl-%s", session ? session : "/dev/shm", name);
}

static size_t page_up(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

static int open_comm(struct comm **made, const char *name, int ranks, int rank) {
    char path[4096];
    size_t pairs = (size_t)ranks * ranks;
    size_t states = page_up(ranks * sizeof(struct rank_state));
    size_t boxes = page_up(pairs * sizeof(struct mailbox));
    size_t ring = (size_t)ranks * RING * CARRIED_BYTES;
    size_t bytes = states + boxes + ring + pairs * RING * CARRIED_BYTES;
    if (ranks < 1 || rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
    folder_of(path, sizeof path, name);
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ftruncate(file, bytes)) return perror(path), SYSTEM;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    close(file);
    if (memory == MAP_FAILED) return SYSTEM;
    struct comm *comm = calloc(1, sizeof *comm);
    comm->ranks = ranks, comm->rank = rank, comm->device = device_current();
    snprintf(comm->name, sizeof comm->name, "%s", name);
    comm->memory = memory, comm->bytes = bytes;
    comm->states = (struct rank_state *)memory;
    comm->mailboxes = (struct mailbox *)(memory + states);
    comm->rings = memory + states + boxes;
    comm->letters = comm->rings + ring;
    return *made = comm, SUCCESS;
}

// Waiting: at first by yielding, soon by sleeping, since the others need the cores.
static int wait_for(struct comm *comm, _Atomic uint64_t *value, uint64_t least) {
    for (long tries = 0; atomic_load(value) < least; tries++) {
        if (atomic_load(&comm->aborted)) return INTERNAL;
        if (tries < 200) sched_yield();
        else nanosleep(&(struct timespec){0, tries < 2000 ? 50000 : 1000000}, NULL);
    }
    return SUCCESS;
}
static int wait_for_all(struct comm *comm, size_t offset, uint64_t least) {
    for (int rank = 0; rank < comm->ranks; rank++) {
        char *state = (char *)&comm->states[rank];
        int failed = wait_for(comm, (_Atomic uint64_t *)(state + offset), least);
        if (failed) return failed;
    }
    return SUCCESS;
}
#define ARRIVED offsetof(struct rank_state, arrived)
#define TAKEN offsetof(struct rank_state, taken)

static char *place(struct comm *comm, int rank, uint64_t number) {
    return comm->rings + ((size_t)rank * RING + number % RING) * CARRIED_BYTES;
}
static char *letter(struct comm *comm, int from, int to, uint64_t number) {
    return comm->letters + (((size_t)from * comm->ranks + to) * RING + number % RING) * CARRIED_BYTES;
}

// Numbers of every type go through double or, for integers, through 64 bits.
static float half_value(uint16_t bits) {
    int sign = bits >> 15, exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value = exponent == 31 ? (fraction ? __builtin_nanf("") : __builtin_inff())
                : exponent ? __builtin_ldexpf(1024 + fraction, exponent - 25)
                           : __builtin_ldexpf(fraction, -24);
    return sign ? -value : value;
}
static uint16_t half_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t sign = bits >> 16 & 0x8000;
    float size = value < 0 ? -value : value;
    if (size != size) return sign | 0x7e00;
    if (size >= 65520) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | (uint16_t)(size * 0x1p24f + 0.5f);
    memcpy(&bits, &size, 4);
    bits += 0xfff + (bits >> 13 & 1);
    return sign | (uint16_t)((bits >> 13) - (112 << 10));
}
static double real_at(const char *data, int type) {
    uint16_t half;
    uint32_t bits;
    float single;
    double number;
    switch (type) {
    case FLOAT16: memcpy(&half, data, 2); return half_value(half);
    case BFLOAT16: memcpy(&half, data, 2), bits = (uint32_t)half << 16, memcpy(&single, &bits, 4); return single;
    case FLOAT32: memcpy(&single, data, 4); return single;
    default: memcpy(&number, data, 8); return number;
    }
}
static void put_real(char *data, int type, double number) {
    float single = (float)number;
    uint16_t half;
    uint32_t bits;
    switch (type) {
    case FLOAT16: half = half_bits(single), memcpy(data, &half, 2); break;
    case BFLOAT16:
        memcpy(&bits, &single, 4);
        half = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, memcpy(data, &half, 2);
        break;
    case FLOAT32: memcpy(data, &single, 4); break;
    default: memcpy(data, &number, 8);
    }
}
static int is_real(int type) {
    return type == FLOAT16 || type == FLOAT32 || type == FLOAT64 || type == BFLOAT16;
}
static int64_t whole_at(const char *data, int type) {
    int64_t number = 0;
    memcpy(&number, data, sizes[type]);
    if (type == INT8) return (int8_t)number;
    return type == INT32 ? (int32_t)number : number;
}

// Factors of operations that multiply before they add.
static double factors[256];
static _Atomic int factor_count;

static double combine(double left, double right, int op) {
    switch (op) {
    case PROD: return left * right;
    case MAX: return left > right ? left : right;
    case MIN: return left < right ? left : right;
    default: return left + right;
    }
}
static int64_t combine_whole(int64_t left, int64_t right, int op, int is_unsigned) {
    int less = is_unsigned ? (uint64_t)left < (uint64_t)right : left < right;
    switch (op) {
    case PROD: return left * right;
    case MAX: return less ? right : left;
    case MIN: return less ? left : right;
    default: return left + right;
    }
}
// One element of all ranks' contributions, which lie `offset` bytes into each.
static void reduce_one(const struct operation *of, size_t offset, char *to) {
    struct comm *comm = of->comm;
    double factor = of->op >= OWN_OPS ? factors[of->op - OWN_OPS] : 1;
    if (is_real(of->type)) {
        double sum = factor * real_at(place(comm, 0, of->number) + offset, of->type);
        for (int rank = 1; rank < comm->ranks; rank++)
            sum = combine(sum, factor * real_at(place(comm, rank, of->number) + offset, of->type), of->op);
        put_real(to, of->type, of->op == AVG ? sum / comm->ranks : sum);
        return;
    }
    int is_unsigned = of->type == UINT8 || of->type == UINT32 || of->type == UINT64;
    int64_t sum = whole_at(place(comm, 0, of->number) + offset, of->type);
    for (int rank = 1; rank < comm->ranks; rank++)
        sum = combine_whole(sum, whole_at(place(comm, rank, of->number) + offset, of->type), of->op,
                            is_unsigned);
    if (of->op == AVG) sum /= comm->ranks;
    memcpy(to, &sum, sizes[of->type]);
}

static size_t contribution(const struct operation *of) {
    size_t bytes = of->count * sizes[of->type];
    int scattered = of->kind == REDUCE_SCATTER || of->kind == ALL_TO_ALL;
    return scattered ? bytes * of->comm->ranks : bytes;
}

// First half of a collective: put what this rank has.
static int contribute(struct operation *of) {
    struct comm *comm = of->comm;
    size_t bytes = contribution(of);
    of->number = ++comm->operations;
    of->carried = bytes <= CARRIED_BYTES && of->type < E4M3;
    if (of->number > RING) {
        int failed = wait_for_all(comm, TAKEN, of->number - RING);
        if (failed) return failed;
    }
    int has = of->kind != BROADCAST || of->peer == comm->rank;
    if (of->carried && has) memcpy(place(comm, comm->rank, of->number), of->from, bytes);
    atomic_store(&comm->states[comm->rank].knowledge[of->number % RING], contributed);
    atomic_store(&comm->states[comm->rank].arrived, of->number);
    return SUCCESS;
}

static void take(const struct operation *of) {
    struct comm *comm = of->comm;
    size_t bytes = of->count * sizes[of->type], size = sizes[of->type];
    size_t start = of->kind == REDUCE_SCATTER ? comm->rank * bytes : 0;
    switch (of->kind) {
    case BROADCAST: memcpy(of->to, place(comm, of->peer, of->number), bytes); break;
    case ALL_GATHER:
        for (int rank = 0; rank < comm->ranks; rank++)
            memcpy(of->to + rank * bytes, place(comm, rank, of->number), bytes);
        break;
    case ALL_TO_ALL:
        for (int rank = 0; rank < comm->ranks; rank++)
            memcpy(of->to + rank * bytes, place(comm, rank, of->number) + comm->rank * bytes, bytes);
        break;
    case REDUCE:
        if (of->peer != comm->rank) break;  // fall through
    default:
        for (size_t at = 0; at < of->count; at++)
            reduce_one(of, start + at * size, of->to + at * size);
    }
}

// Second half: take what the others put; of what is not carried, nothing.
static int collect(struct operation *of) {
    struct comm *comm = of->comm;
    int failed = of->carried ? wait_for_all(comm, ARRIVED, of->number) : SUCCESS;
    if (failed) return failed;
    if (of->carried) take(of);
    for (int rank = 0; of->carried && rank < comm->ranks; rank++) {
        int counts = of->kind != BROADCAST || rank == of->peer;
        unsigned char other = comm->states[rank].knowledge[of->number % RING];
        if (counts && other > received) received = other;
    }
    if (!of->carried) received = 2;
    atomic_store(&comm->states[comm->rank].taken, of->number);
    return SUCCESS;
}

static int post(struct operation *of) {
    struct comm *comm = of->comm;
    struct mailbox *box = &comm->mailboxes[(size_t)comm->rank * comm->ranks + of->peer];
    size_t bytes = of->count * sizes[of->type];
    uint64_t number = atomic_load(&box->sent) + 1;
    if (number > RING) {
        int failed = wait_for(comm, &box->received, number - RING);
        if (failed) return failed;
    }
    if (bytes <= CARRIED_BYTES) memcpy(letter(comm, comm->rank, of->peer, number), of->from, bytes);
    atomic_store(&box->knowledge[number % RING], bytes <= CARRIED_BYTES ? contributed : 2);
    atomic_store(&box->sent, number);
    return SUCCESS;
}
static int fetch(struct operation *of) {
    struct comm *comm = of->comm;
    struct mailbox *box = &comm->mailboxes[(size_t)of->peer * comm->ranks + comm->rank];
    size_t bytes = of->count * sizes[of->type];
    uint64_t number = atomic_load(&box->received) + 1;
    int failed = wait_for(comm, &box->sent, number);
    if (failed) return failed;
    if (bytes <= CARRIED_BYTES) memcpy(of->to, letter(comm, of->peer, comm->rank, number), bytes);
    if (box->knowledge[number % RING] > received) received = box->knowledge[number % RING];
    atomic_store(&box->received, number);
    return SUCCESS;
}

// Groups: everything is put before anything is waited for, as one thread may have several ranks.
static __thread struct operation *queue;
static __thread size_t queued, room;
static __thread int depth;

// Objects: bytes that are more than one place of the ring holds go piece by piece.
static int in_pieces(struct operation of, size_t whole) {
    size_t per = of.kind == REDUCE_SCATTER || of.kind == ALL_TO_ALL ? CARRIED_BYTES / of.comm->ranks
                                                                     : CARRIED_BYTES;
    char *pieces = of.kind == ALL_GATHER ? malloc(per * of.comm->ranks) : NULL;
    int failed = SUCCESS;
    for (size_t done = 0; done < whole && !failed; done += per) {
        struct operation piece = of;
        piece.count = whole - done < per ? whole - done : per;
        piece.from = of.from + done;
        piece.to = pieces ? pieces : of.to + done;
        failed = contribute(&piece);
        if (!failed) failed = collect(&piece);
        for (int rank = 0; pieces && rank < of.comm->ranks; rank++)
            memcpy(of.to + rank * whole + done, pieces + rank * piece.count, piece.count);
    }
    free(pieces);
    return failed;
}
static int is_object(const struct operation *of) {
    int by_piece = of->kind == BROADCAST || of->kind == ALL_GATHER || of->kind == ALL_REDUCE;
    return by_piece && of->type <= UINT8 && of->count > CARRIED_BYTES &&
           of->count <= CARRIED_OBJECT_BYTES;
}

static int run_queue(void) {
    int failed = SUCCESS;
    if (queued == 1 && is_object(queue)) return queued = 0, in_pieces(queue[0], queue[0].count);
    for (size_t at = 0; at < queued && !failed; at++)
        failed = queue[at].kind == SEND ? post(&queue[at])
               : queue[at].kind == RECEIVE ? SUCCESS : contribute(&queue[at]);
    for (size_t at = 0; at < queued && !failed; at++)
        failed = queue[at].kind == RECEIVE ? fetch(&queue[at])
               : queue[at].kind == SEND ? SUCCESS : collect(&queue[at]);
    queued = 0;
    return failed;
}
int ncclGroupStart(void) { return depth++, SUCCESS; }
int ncclGroupEnd(void) {
    if (depth == 0) return INVALID_USAGE;
    return --depth ? SUCCESS : run_queue();
}

static int add(struct operation of) {
    if (!of.comm || of.type < 0 || of.type > E5M2 || of.op >= OWN_OPS + 256) return INVALID_ARGUMENT;
    if (queued == room) queue = realloc(queue, (room = room ? 2 * room : 64) * sizeof *queue);
    queue[queued++] = of;
    return depth ? SUCCESS : run_queue();
}

int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, ncclComm_t comm,
                  void *stream) {
    return add((struct operation){ALL_REDUCE, from, to, count, type, op, 0, comm});
}
int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, ncclComm_t comm,
                  void *stream) {
    return add((struct operation){BROADCAST, from, to, count, type, SUM, root, comm});
}
int ncclBcast(void *data, size_t count, int type, int root, ncclComm_t comm, void *stream) {
    return ncclBroadcast(data, data, count, type, root, comm, stream);
}
int ncclReduce(const void *from, void *to, size_t count, int type, int op, int root,
               ncclComm_t comm, void *stream) {
    return add((struct operation){REDUCE, from, to, count, type, op, root, comm});
}
int ncclAllGather(const void *from, void *to, size_t count, int type, ncclComm_t comm,
                  void *stream) {
    return add((struct operation){ALL_GATHER, from, to, count, type, SUM, 0, comm});
}
int ncclReduceScatter(const void *from, void *to, size_t count, int type, int op, ncclComm_t comm,
                      void *stream) {
    return add((struct operation){REDUCE_SCATTER, from, to, count, type, op, 0, comm});
}
int ncclAlltoAll(const void *from, void *to, size_t count, int type, ncclComm_t comm,
                 void *stream) {
    return add((struct operation){ALL_TO_ALL, from, to, count, type, SUM, 0, comm});
}
int ncclSend(const void *from, size_t count, int type, int peer, ncclComm_t comm, void *stream) {
    if (!comm || peer < 0 || peer >= comm->ranks) return INVALID_ARGUMENT;
    return add((struct operation){SEND, from, NULL, count, type, SUM, peer, comm});
}
int ncclRecv(void *to, size_t count, int type, int peer, ncclComm_t comm, void *stream) {
    if (!comm || peer < 0 || peer >= comm->ranks) return INVALID_ARGUMENT;
    return add((struct operation){RECEIVE, NULL, to, count, type, SUM, peer, comm});
}

// Communicators.
int ncclGetVersion(int *version) { return *version = VERSION, SUCCESS; }
int ncclGetUniqueId(ncclUniqueId *id) {
    unsigned char random[16];
    int file = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (file < 0 || read(file, random, sizeof random) != sizeof random) return SYSTEM;
    close(file);
    memset(id, 0, sizeof *id);
    for (int at = 0; at < 16; at++) snprintf(id->name + 2 * at, 3, "%02x", random[at]);
    return SUCCESS;
}
int ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, void *config) {
    id.name[64] = 0;
    if (!*id.name || strspn(id.name, "0123456789abcdef-") != strlen(id.name)) return INVALID_ARGUMENT;
    return open_comm(comm, id.name, ranks, rank);
}
int ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(comm, ranks, id, rank, NULL);
}
int ncclCommInitRankScalable(ncclComm_t *comm, int ranks, int rank, int ids, ncclUniqueId *id,
                             void *config) {
    return ncclCommInitRankConfig(comm, ranks, id[0], rank, config);
}
int ncclCommInitAll(ncclComm_t *comms, int count, const int *devices) {
    ncclUniqueId id;
    int failed = ncclGetUniqueId(&id), before = device_current();
    for (int rank = 0; rank < count && !failed; rank++) {
        device_set_current(devices ? devices[rank] : rank);
        failed = ncclCommInitRank(&comms[rank], count, id, rank);
    }
    device_set_current(before);
    return failed;
}
int ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *made, void *config) {
    int32_t mine[2] = {color, key}, (*all)[2] = calloc(comm->ranks, sizeof *all);
    char name[96];
    int failed = ncclAllGather(mine, all, sizeof mine, INT8, comm, NULL), ranks = 0, rank = 0;
    uint64_t number = ++comm->splits;
    for (int other = 0; other < comm->ranks; other++) {
        if (all[other][0] != color) continue;
        ranks++;
        if (all[other][1] < key || (all[other][1] == key && other < comm->rank)) rank++;
    }
    free(all);
    *made = NULL;
    if (failed || color < 0) return failed;
    snprintf(name, sizeof name, "%.60s-%llx-%x", comm->name, (unsigned long long)number, color);
    return open_comm(made, name, ranks, rank);
}
int ncclCommFinalize(ncclComm_t comm) { return SUCCESS; }
int ncclCommDestroy(ncclComm_t comm) {
    char path[4096];
    if (!comm) return SUCCESS;
    folder_of(path, sizeof path, comm->name);
    if (comm->rank == 0 && !session_folder()) unlink(path);
    munmap(comm->memory, comm->bytes);
    return free(comm), SUCCESS;
}
// Threads may still wait in it: it is marked, and its memory stays.
int ncclCommAbort(ncclComm_t comm) {
    if (comm) atomic_store(&comm->aborted, 1);
    return SUCCESS;
}
int ncclCommGetAsyncError(ncclComm_t comm, int *error) { return *error = SUCCESS, SUCCESS; }
int ncclCommCount(ncclComm_t comm, int *count) { return *count = comm->ranks, SUCCESS; }
int ncclCommUserRank(ncclComm_t comm, int *rank) { return *rank = comm->rank, SUCCESS; }
int ncclCommCuDevice(ncclComm_t comm, int *device) { return *device = comm->device, SUCCESS; }
int ncclCommRegister(ncclComm_t comm, void *data, size_t bytes, void **handle) {
    return *handle = data, SUCCESS;
}
int ncclCommDeregister(ncclComm_t comm, void *handle) { return SUCCESS; }
const char *ncclGetErrorString(int error) {
    return error == SUCCESS ? "no error" : error == SYSTEM ? "unhandled system error"
         : error == INVALID_ARGUMENT ? "invalid argument" : "stand-in error";
}
const char *ncclGetLastError(ncclComm_t comm) { return ""; }

int ncclRedOpCreatePreMulSum(int *op, void *factor, int type, int residence, ncclComm_t comm) {
    int number = atomic_fetch_add(&factor_count, 1) % 256;
    factors[number] = is_real(type) ? real_at(factor, type) : (double)whole_at(factor, type);
    return *op = OWN_OPS + number, SUCCESS;
}
int ncclRedOpDestroy(int op, ncclComm_t comm) { return SUCCESS; }

int cudaMalloc(void **address, size_t bytes);
int cudaFree(void *address);
int ncclMemAlloc(void **address, size_t bytes) {
    return cudaMalloc(address, bytes) ? UNHANDLED_CUDA : SUCCESS;
}
int ncclMemFree(void *address) { return cudaFree(address) ? UNHANDLED_CUDA : SUCCESS; }
