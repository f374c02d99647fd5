// A stand-in for libcudart: memory, streams, events and captures; kernels do nothing.
#define _GNU_SOURCE
#include "device.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

// Copies between device addresses carry nothing that anything computed; beyond this they are
// left out, so that no host page is committed for them.
#define COPIED_BYTES ((size_t)1 << 20)
// Copies from the host are true up to here: token numbers are, weights need no host page.
#define COPIED_FROM_HOST_BYTES ((size_t)16 << 20)


static __thread cudaError_t last_error;
static cudaError_t failed(cudaError_t error) { return last_error = error; }
static cudaError_t checked(int error) { return error ? failed(error) : cudaSuccess; }

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
// Names and words of the errors that callers tell apart.
static const struct { cudaError_t error; const char *name, *words; } errors[] = {
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {100, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorNotSupported, "cudaErrorNotSupported",
     "operation not supported (the stand-in for CUDA's libraries has no such function)"},
    {98, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorUnknown, "cudaErrorStandIn", "stand-in error"},
};
static size_t error_number(cudaError_t error) {
    size_t number = 0;
    while (errors[number].error != error && errors[number].error != cudaErrorUnknown) number++;
    return number;
}
const char *cudaGetErrorName(cudaError_t error) { return errors[error_number(error)].name; }
const char *cudaGetErrorString(cudaError_t error) { return errors[error_number(error)].words; }

// Devices.
cudaError_t cudaGetDeviceCount(int *count) {
    *count = device_count();
    return *count ? cudaSuccess : failed(100);  // cudaErrorNoDevice
}
cudaError_t cudaGetDevice(int *device) { return *device = device_current(), cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    return device_set_current(device) ? cudaSuccess : failed(cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceSynchronize(void) { return checked(refuse_device_wait()); }
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDA_MAJOR * 1000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) {
    return *version = CUDA_MAJOR * 1000, cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int device) {
    return *value = device_attribute(attribute), cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
    char text[32];
    device_bus_id(device, text, sizeof text);
    snprintf(id, length, "%s", text + 4);  // the runtime's has four digits for the domain
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    return *least = 0, *greatest = -5, cudaSuccess;
}
// All devices of a machine reach each other, as by NVLink.
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    return *can = device != peer, cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
    static __thread unsigned enabled[MOST_DEVICES];
    if (peer < 0 || peer >= device_count()) return failed(cudaErrorInvalidDevice);
    if (enabled[device_current()] & 1u << peer) return failed(cudaErrorPeerAccessAlreadyEnabled);
    return enabled[device_current()] |= 1u << peer, cudaSuccess;
}

static void set_limits(struct cudaDeviceProp *properties) {
    properties->sharedMemPerBlock = device_attribute(MAX_SHARED_MEMORY_PER_BLOCK);
    properties->sharedMemPerBlockOptin = device_attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    properties->sharedMemPerMultiprocessor =
        device_attribute(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
    properties->regsPerBlock = device_attribute(MAX_REGISTERS_PER_BLOCK);
    properties->regsPerMultiprocessor = device_attribute(MAX_REGISTERS_PER_MULTIPROCESSOR);
    properties->warpSize = device_attribute(WARP_SIZE);
    properties->maxThreadsPerBlock = device_attribute(MAX_THREADS_PER_BLOCK);
    properties->maxThreadsPerMultiProcessor =
        device_attribute(MAX_THREADS_PER_MULTIPROCESSOR);
    properties->maxBlocksPerMultiProcessor =
        device_attribute(MAX_BLOCKS_PER_MULTIPROCESSOR);
    for (int axis = 0; axis < 3; axis++) {
        properties->maxThreadsDim[axis] = device_attribute(MAX_BLOCK_DIM_X + axis);
        properties->maxGridSize[axis] = device_attribute(MAX_GRID_DIM_X + axis);
    }
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    if (device < 0 || device >= device_count()) return failed(cudaErrorInvalidDevice);
    memset(properties, 0, sizeof *properties);
    strncpy(properties->name, device_name(), sizeof properties->name - 1);
    device_uuid(device, properties->uuid.bytes);
    properties->totalGlobalMem = device_total_bytes();
    properties->major = device_attribute(COMPUTE_CAPABILITY_MAJOR);
    properties->minor = device_attribute(COMPUTE_CAPABILITY_MINOR);
    properties->multiProcessorCount = device_attribute(MULTIPROCESSOR_COUNT);
    properties->l2CacheSize = device_attribute(L2_CACHE_SIZE);
    properties->memoryBusWidth = device_attribute(GLOBAL_MEMORY_BUS_WIDTH);
    properties->textureAlignment = device_attribute(TEXTURE_ALIGNMENT);
    properties->asyncEngineCount = device_attribute(ASYNC_ENGINE_COUNT);
    properties->concurrentKernels = properties->unifiedAddressing = 1;
    properties->cooperativeLaunch = properties->streamPrioritiesSupported = 1;
    char id[32];
    device_bus_id(device, id, sizeof id);
    properties->pciBusID = (int)strtol(id + 9, NULL, 16);
    properties->canMapHostMemory = properties->managedMemory = 1;
    set_limits(properties);
    return cudaSuccess;
}

// As CUDA 12 calls it.
cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *properties, int device) {
    return cudaGetDeviceProperties(properties, device);
}

CUresult cuGetProcAddress_v2(const char *name, void **function, int version,
                             unsigned long long flags, int *status);

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags,
                                             int *result) {
    int refused = cuGetProcAddress_v2(symbol, function, (int)version, flags, result);
    return refused ? failed(cudaErrorSymbolNotFound) : cudaSuccess;
}
cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **function, unsigned long long flags,
                                    int *result) {
    return cudaGetDriverEntryPointByVersion(symbol, function, 0, flags, result);
}

// Memory. An allocation's pages are kept in a list by address, to know them when they are freed.
struct allocation { void *address; size_t bytes; struct allocation *next; };
static struct allocation *allocations;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *keep(size_t bytes) {
    struct allocation *kept = malloc(sizeof *kept);
    *kept = (struct allocation){address_reserve(device_current(), bytes), bytes, NULL};
    if (!kept->address) return free(kept), NULL;
    address_back(kept->address, bytes);
    pthread_mutex_lock(&lock);
    kept->next = allocations;
    allocations = kept;
    pthread_mutex_unlock(&lock);
    return kept->address;
}

static size_t forget(void *address) {
    pthread_mutex_lock(&lock);
    struct allocation **at = &allocations;
    while (*at && (*at)->address != address) at = &(*at)->next;
    struct allocation *found = *at;
    if (found) *at = found->next;
    pthread_mutex_unlock(&lock);
    size_t bytes = found ? found->bytes : 0;
    free(found);
    return bytes;
}

cudaError_t cudaMalloc(void **address, size_t bytes) {
    int refused = refuse_unsafe();
    if (refused) return failed(refused);
    if (!bytes) return *address = NULL, cudaSuccess;
    size_t pages = (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    int device = device_current();
    if (!device_take(device, pages)) return failed(cudaErrorMemoryAllocation);
    *address = keep(pages);
    if (*address) return cudaSuccess;
    return device_give_back(device, pages), failed(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void *address) {
    int refused = refuse_unsafe();
    if (refused) return failed(refused);
    if (!address) return device_touch(device_current()), cudaSuccess;  // how a context is made
    int device = address_device(address);
    size_t bytes = forget(address);
    if (!bytes) return failed(cudaErrorInvalidValue);
    address_unback(address, bytes);
    address_release(address);
    return device_give_back(device, bytes), cudaSuccess;
}
cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t stream) {
    return cudaMalloc(address, bytes);
}
cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) { return cudaFree(address); }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *free_bytes = device_free_bytes(device_current()), *total = device_total_bytes();
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    int refused = refuse_unsafe();
    if (refused) return failed(refused);
    if (posix_memalign(address, 4096, bytes ? bytes : 1)) return failed(cudaErrorMemoryAllocation);
    return host_remember(*address, bytes), cudaSuccess;
}
cudaError_t cudaMallocHost(void **address, size_t bytes) { return cudaHostAlloc(address, bytes, 0); }
cudaError_t cudaFreeHost(void *address) {
    return host_forget(address), free(address), cudaSuccess;
}
cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned flags) {
    return host_remember(address, bytes), cudaSuccess;
}
cudaError_t cudaHostUnregister(void *address) {
    return host_forget(address) ? cudaSuccess : failed(cudaErrorInvalidValue);
}
// Host memory that kernels read has its own address there too, since addresses are unified.
cudaError_t cudaHostGetDevicePointer(void **on_device, void *address, unsigned flags) {
    return *on_device = address, cudaSuccess;
}
// Managed memory counts as the device's, where it would be when kernels have used all of it.
cudaError_t cudaMallocManaged(void **address, size_t bytes, unsigned flags) {
    return cudaMalloc(address, bytes);
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
    memset(attributes, 0, sizeof *attributes);
    int device = address_device(address), pinned = device < 0 && host_is_known(address);
    attributes->type = device >= 0 ? MEMORY_DEVICE : pinned ? MEMORY_HOST : MEMORY_UNREGISTERED;
    attributes->device = device >= 0 ? device : pinned ? device_current() : -2;
    attributes->devicePointer = device >= 0 || pinned ? (void *)address : NULL;
    attributes->hostPointer = pinned ? (void *)address : NULL;
    return cudaSuccess;
}

// The next number that is copied to the host: how many elements an operator found, which the host
// computed for it, so that what it allocates has the right size.
static __thread long long answer;
static __thread int answers;
void tritter_standin_answer(long long value, int count) { answer = value, answers = count; }

// Large copies are left out: they carry what nothing computed, or weights.
static cudaError_t copy(void *to, const void *from, size_t bytes) {
    int to_device = address_device(to) >= 0, from_device = address_device(from) >= 0;
    if (!range_is_device(to, bytes) || !range_is_device(from, bytes))
        return failed(cudaErrorInvalidValue);
    size_t most = !to_device ? SIZE_MAX : from_device ? COPIED_BYTES : COPIED_FROM_HOST_BYTES;
    if (answers && from_device && !to_device && (bytes == 4 || bytes == 8)) {
        answers--;
        return memcpy(to, &answer, bytes), cudaSuccess;
    }
    if (bytes <= most) memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    int refused = refuse_unsafe();
    return refused ? failed(refused) : copy(to, from, bytes);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind,
                            cudaStream_t stream) {
    int refused = add_work(stream_of(stream));
    return refused ? failed(refused) : copy(to, from, bytes);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, int kind,
                              cudaStream_t stream) {
    int refused = add_work(stream_of(stream));
    for (size_t row = 0; row < height && !refused; row++)
        refused = copy((char *)to + row * to_pitch, (char *)from + row * from_pitch, width);
    return checked(refused);
}
cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device,
                                size_t bytes, cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, bytes, 0, stream);
}
cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t bytes, size_t offset,
                               int kind) {
    return cudaSuccess;  // only kernels read it
}
static cudaError_t set(void *address, int value, size_t bytes) {
    if (!range_is_device(address, bytes)) return failed(cudaErrorInvalidValue);
    if (bytes <= COPIED_BYTES) memset(address, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *address, int value, size_t bytes) {
    int refused = refuse_unsafe();
    return refused ? failed(refused) : set(address, value, bytes);
}
cudaError_t cudaMemsetAsync(void *address, int value, size_t bytes, cudaStream_t stream) {
    int refused = add_work(stream_of(stream));
    return refused ? failed(refused) : set(address, value, bytes);
}

// Streams. A capture allocates from its own pool in PyTorch; here it is what `capture.c` keeps.
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return *stream = (cudaStream_t)stream_create(flags), cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithPriority(stream, 0, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return stream_destroy(stream_of(stream)), cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return checked(refuse_wait(stream_of(stream))); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return checked(refuse_wait(stream_of(stream)));
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return checked(stream_wait_event(stream_of(stream), (struct mark *)event));
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    return *priority = 0, cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void *data,
                                  unsigned flags) {
    return callback(stream, cudaSuccess, data), cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    return function(data), cudaSuccess;
}
cudaError_t cudaLaunchHostFunc_v2(cudaStream_t stream, cudaHostFn_t function, void *data,
                                  unsigned mode) {
    return cudaLaunchHostFunc(stream, function, data);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode) {
    return checked(capture_begin(stream_of(stream), mode));
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    int refused = capture_end(stream_of(stream));
    *graph = refused ? NULL : malloc(1);
    return checked(refused);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, int *status) {
    unsigned long long id;
    return *status = capture_status(stream_of(stream), &id), cudaSuccess;
}
static cudaError_t capture_info(cudaStream_t stream, int *status, unsigned long long *id,
                                cudaGraph_t *graph, const void **nodes, size_t *count) {
    unsigned long long number = 0;
    *status = capture_status(stream_of(stream), &number);
    if (id) *id = number;
    if (graph) *graph = NULL;
    if (nodes) *nodes = NULL;
    if (count) *count = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t stream, int *status, unsigned long long *id,
                                        cudaGraph_t *graph, const void **nodes, size_t *count) {
    return capture_info(stream, status, id, graph, nodes, count);
}
cudaError_t cudaStreamGetCaptureInfo_v3(cudaStream_t stream, int *status, unsigned long long *id,
                                        cudaGraph_t *graph, const void **nodes, const void **edges,
                                        size_t *count) {
    if (edges) *edges = NULL;
    return capture_info(stream, status, id, graph, nodes, count);
}
#if CUDA_MAJOR < 13
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, int *status, unsigned long long *id) {
    return capture_info(stream, status, id, NULL, NULL, NULL);
}
#else
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, int *status, unsigned long long *id,
                                     cudaGraph_t *graph, const void **nodes, const void **edges,
                                     size_t *count) {
    return cudaStreamGetCaptureInfo_v3(stream, status, id, graph, nodes, edges, count);
}
#endif
cudaError_t cudaThreadExchangeStreamCaptureMode(int *mode) {
    return *mode = capture_mode_exchange(*mode), cudaSuccess;
}
// PyTorch warns of a graph without nodes.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    return *count = 1, cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph,
                                 unsigned long long flags) {
    if (!graph) return failed(cudaErrorInvalidValue);
    return *executable = malloc(1), cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph,
                                          unsigned long long flags) {
    if (!graph) return failed(cudaErrorInvalidValue);
    return *executable = malloc(1), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    return executable ? checked(add_work(stream_of(stream))) : failed(cudaErrorInvalidValue);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return free(graph), cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return free(executable), cudaSuccess; }

// Events carry the host's clock.
struct event { struct mark mark; };

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    return *event = calloc(1, sizeof(struct event)), cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    struct event *recorded = (struct event *)event;
    return checked(event_record(&recorded->mark, stream_of(stream)));
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}

// While a backward pass runs, PyTorch's watchdog of NCCL sees no collective end. It looks every 100 ms,
// which falls into a pass as short as here by chance, and what it has seen is freed by the next one.
static _Atomic int backward_passes;
void tritter_standin_backward(int more) { backward_passes += more; }

static int is_watchdog(void) {
    static __thread int known, is;
    if (!known) {
        char name[16] = "";
        known = 1, prctl(PR_GET_NAME, name), is = !strcmp(name, "pt_nccl_watchdg");
    }
    return is;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (backward_passes && is_watchdog()) return failed(cudaErrorNotReady);
    return checked(refuse_event_wait((struct mark *)event));
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaEventQuery(event); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    // Nothing is computed, so no time means anything: of choices that are all alike the first is taken.
    session_note_stub("times between events are alike: autotuners take the first of their choices");
    return *milliseconds = 1, cudaSuccess;
}

cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
cudaError_t cudaProfilerStop(void) { return cudaSuccess; }

// Kernels: what a compiler's launch needs so that it returns.
struct configuration { dim3 grid, block; size_t shared; void *stream; };
static __thread struct configuration configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    configuration = (struct configuration){grid, block, shared, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared;
    *(void **)stream = configuration.stream;
    return cudaSuccess;
}
// Code is compiled for a list of architectures, in binaries whose parts say for which. Of a card that is
// not in the list, the closest older one of its generation runs; libraries ask which that is.
#define READ_BINARIES 64
static const void *binaries[READ_BINARIES];
static _Atomic unsigned binary_count;

struct binary { int magic, version; const char *data; };
struct binary_part {
    uint16_t kind, version;
    uint32_t header_bytes;
    uint64_t bytes;
    uint32_t packed_bytes, unknown;
    uint16_t minor, major;
    uint32_t architecture;
};
static int best_in(const struct binary *binary, int wanted) {
    uint64_t bytes;
    int found = 0;
    if (binary->magic != 0x466243b1) return 0;
    memcpy(&bytes, binary->data + 8, 8);
    const char *at = binary->data + 16, *end = at + bytes;
    while (at + sizeof(struct binary_part) <= end) {
        struct binary_part part;
        memcpy(&part, at, sizeof part);
        int runs = (int)part.architecture <= wanted &&
                   (part.kind == 1 || (int)part.architecture / 10 == wanted / 10);
        if (runs && (int)part.architecture > found) found = part.architecture;
        if (!part.header_bytes) break;
        at += part.header_bytes + part.bytes;
    }
    return found;
}
static int architecture(void) {
    static int found;
    int wanted = device_attribute(COMPUTE_CAPABILITY_MAJOR) * 10 +
                 device_attribute(COMPUTE_CAPABILITY_MINOR);
    for (unsigned at = 0; !found && at < binary_count && at < READ_BINARIES; at++)
        found = best_in(binaries[at], wanted);
    return found ? found : wanted;
}
void **__cudaRegisterFatBinary(void *binary) {
    unsigned at = binary_count++;
    if (at < READ_BINARIES) binaries[at] = binary;
    return calloc(1, sizeof(void *));
}
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name,
                            int limit, void *thread, void *block, dim3 *block_dim, dim3 *grid_dim,
                            int *warp) {}
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external,
                       size_t bytes, int constant, int global) {}
char __cudaInitModule(void **handle) { return 0; }
cudaError_t __cudaGetKernel(void **kernel, const void *host) {
    return *kernel = (void *)host, cudaSuccess;
}

// Kernels that asked for more shared memory than all have.
struct opt_in { const void *kernel; unsigned shared; struct opt_in *next; };
static struct opt_in *opt_ins;

static struct opt_in *opt_in_of(const void *kernel) {
    struct opt_in *found = opt_ins;
    while (found && found->kernel != kernel) found = found->next;
    return found;
}

static cudaError_t launch(const void *kernel, dim3 grid, dim3 block, size_t shared, void *stream) {
    struct launch asked = {
        {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared};
    struct opt_in *found = opt_in_of(kernel);
    if (!launch_fits(&asked, found ? found->shared : 0)) return failed(cudaErrorInvalidConfiguration);
    return checked(add_work(stream_of(stream)));
}
cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    return launch(kernel, grid, block, shared, stream);
}
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                             size_t shared, cudaStream_t stream) {
    return launch(kernel, grid, block, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *to, const void *kernel,
                                void **arguments) {
    return launch(kernel, to->gridDim, to->blockDim, to->dynamicSmemBytes, to->stream);
}
cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                                        size_t shared, cudaStream_t stream) {
    return launch(kernel, grid, block, shared, stream);
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 64;
    attributes->binaryVersion = attributes->ptxVersion = architecture();
    attributes->maxDynamicSharedSizeBytes = 49152;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *kernel, int attribute, int value) {
    if (attribute != FUNCTION_DYNAMIC_SHARED) return cudaSuccess;
    if (value > device_attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN))
        return failed(cudaErrorInvalidValue);
    pthread_mutex_lock(&lock);
    struct opt_in *found = opt_in_of(kernel);
    if (!found) {
        found = malloc(sizeof *found);
        *found = (struct opt_in){kernel, 0, opt_ins};
        opt_ins = found;
    }
    found->shared = value;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel,
                                                                   int size, size_t shared,
                                                                   unsigned flags) {
    return *blocks = 2, cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int size,
                                                          size_t shared) {
    return *blocks = 2, cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    return cudaMalloc(address, PAGE_BYTES);
}

// Pools of the runtime's own allocator: it takes from the device as cudaMalloc does.
cudaError_t cudaDeviceGetDefaultMemPool(void **pool, int device) {
    return *pool = (void *)(uintptr_t)(0x6000 + device), cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(void *pool, int attribute, void *value) { return cudaSuccess; }
cudaError_t cudaMemPoolSetAccess(void *pool, const void *access, size_t count) {
    return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(void *pool, size_t bytes) { return cudaSuccess; }
