// A stand-in for libcudart.so.13: memory, streams, events and captures; kernels do nothing.
#define _GNU_SOURCE
#include "device.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

// Copies between device addresses carry nothing that anything computed; beyond this they are
// left out, so that no host page is committed for them.
#define COPIED_BYTES ((size_t)1 << 20)

static __thread cudaError_t last_error;
static cudaError_t failed(cudaError_t error) { return last_error = error; }

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }
const char *cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorStandIn";
}
const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "stand-in error";
}

// Devices.
cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    return device == 0 ? cudaSuccess : failed(cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    return *value = device_attribute(attribute), cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
    strncpy(id, "0000:01:00.0", length);
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    return *least = 0, *greatest = -5, cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { return *can = 0, cudaSuccess; }

static void set_limits(struct cudaDeviceProp *properties) {
    properties->sharedMemPerBlock = device_attribute(cudaDevAttrMaxSharedMemoryPerBlock);
    properties->sharedMemPerBlockOptin = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    properties->sharedMemPerMultiprocessor =
        device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    properties->regsPerBlock = device_attribute(cudaDevAttrMaxRegistersPerBlock);
    properties->regsPerMultiprocessor = device_attribute(cudaDevAttrMaxRegistersPerMultiprocessor);
    properties->warpSize = device_attribute(cudaDevAttrWarpSize);
    properties->maxThreadsPerBlock = device_attribute(cudaDevAttrMaxThreadsPerBlock);
    properties->maxThreadsPerMultiProcessor =
        device_attribute(cudaDevAttrMaxThreadsPerMultiProcessor);
    properties->maxBlocksPerMultiProcessor =
        device_attribute(cudaDevAttrMaxBlocksPerMultiprocessor);
    for (int axis = 0; axis < 3; axis++) {
        properties->maxThreadsDim[axis] = device_attribute(cudaDevAttrMaxBlockDimX + axis);
        properties->maxGridSize[axis] = device_attribute(cudaDevAttrMaxGridDimX + axis);
    }
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    strncpy(properties->name, device_name(), sizeof properties->name - 1);
    memcpy(properties->uuid.bytes, "stand-in-no-gpu", 16);
    properties->totalGlobalMem = device_total_bytes();
    properties->major = device_attribute(cudaDevAttrComputeCapabilityMajor);
    properties->minor = device_attribute(cudaDevAttrComputeCapabilityMinor);
    properties->multiProcessorCount = device_attribute(cudaDevAttrMultiProcessorCount);
    properties->l2CacheSize = device_attribute(cudaDevAttrL2CacheSize);
    properties->memoryBusWidth = device_attribute(cudaDevAttrGlobalMemoryBusWidth);
    properties->textureAlignment = device_attribute(cudaDevAttrTextureAlignment);
    properties->asyncEngineCount = device_attribute(cudaDevAttrAsyncEngineCount);
    properties->concurrentKernels = properties->unifiedAddressing = 1;
    properties->cooperativeLaunch = properties->streamPrioritiesSupported = 1;
    properties->pciBusID = 1;
    set_limits(properties);
    return cudaSuccess;
}

// A function of the driver goes by its own name or, where it was once changed, by its second.
static void *driver_function(const char *name) {
    static void *driver;
    char second[128];
    if (!driver) driver = dlopen("libcuda.so.1", RTLD_NOW);
    snprintf(second, sizeof second, "%s_v2", name);
    void *newer = dlsym(driver, second);
    return newer ? newer : dlsym(driver, name);
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
    *function = driver_function(symbol);
    if (result)
        *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return *function ? cudaSuccess : failed(cudaErrorSymbolNotFound);
}

// Memory. An allocation's pages are kept in a list by address, to know them when they are freed.
struct allocation { void *address; size_t bytes; struct allocation *next; };
static struct allocation *allocations;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *keep(size_t bytes) {
    struct allocation *kept = malloc(sizeof *kept);
    *kept = (struct allocation){address_reserve(bytes), bytes, NULL};
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
    size_t pages = (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    if (!device_take(pages)) return failed(cudaErrorMemoryAllocation);
    *address = keep(pages);
    return cudaSuccess;
}
cudaError_t cudaFree(void *address) {
    size_t bytes = address ? forget(address) : 0;
    if (bytes) address_unback(address, bytes), device_give_back(bytes);
    return cudaSuccess;
}
cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t stream) {
    return cudaMalloc(address, bytes);
}
cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) { return cudaFree(address); }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    return *free_bytes = device_free_bytes(), *total = device_total_bytes(), cudaSuccess;
}
cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    return posix_memalign(address, 4096, bytes ? bytes : 1) ? failed(cudaErrorMemoryAllocation)
                                                            : cudaSuccess;
}
cudaError_t cudaFreeHost(void *address) { return free(address), cudaSuccess; }
cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned flags) { return cudaSuccess; }
cudaError_t cudaHostUnregister(void *address) { return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
    memset(attributes, 0, sizeof *attributes);
    int device = address_is_device(address);
    attributes->type = device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    attributes->device = device ? 0 : -2;
    attributes->devicePointer = device ? (void *)address : NULL;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    int within = address_is_device(to) && address_is_device(from);
    if (!within || bytes <= COPIED_BYTES) memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream) {
    for (size_t row = 0; row < height; row++)
        cudaMemcpy((char *)to + row * to_pitch, (char *)from + row * from_pitch, width, kind);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *address, int value, size_t bytes) {
    if (bytes <= COPIED_BYTES) memset(address, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *address, int value, size_t bytes, cudaStream_t stream) {
    return cudaMemset(address, value, bytes);
}

// Streams and captures. A capture allocates from its own pool in PyTorch; here it is a flag.
struct stream { int capturing; unsigned long long capture; };
static struct stream default_stream;
static unsigned long long captures;
static struct stream *stream_of(cudaStream_t stream) {
    return (uintptr_t)stream <= 2 ? &default_stream : (struct stream *)stream;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return *stream = calloc(1, sizeof(struct stream)), cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    return cudaStreamCreateWithPriority(stream, 0, 0);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return free(stream), cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return cudaSuccess;
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
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    *stream_of(stream) = (struct stream){1, ++captures};
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    stream_of(stream)->capturing = 0;
    return *graph = malloc(1), cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = stream_of(stream)->capturing ? cudaStreamCaptureStatusActive
                                           : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *count) {
    cudaStreamIsCapturing(stream, status);
    if (id) *id = stream_of(stream)->capture;
    if (graph) *graph = NULL;
    if (count) *count = 0;
    return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    static __thread enum cudaStreamCaptureMode current = cudaStreamCaptureModeGlobal;
    enum cudaStreamCaptureMode before = current;
    current = *mode, *mode = before;
    return cudaSuccess;
}
// PyTorch warns of a graph without nodes.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    return *count = 1, cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph,
                                          unsigned long long flags) {
    return *executable = malloc(1), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return free(graph), cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return free(executable), cudaSuccess; }

// Events carry the host's clock.
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    return *event = calloc(1, sizeof(struct timespec)), cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event), cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    const struct timespec *from = (struct timespec *)start, *to = (struct timespec *)end;
    *milliseconds = (to->tv_sec - from->tv_sec) * 1e3 + (to->tv_nsec - from->tv_nsec) / 1e6;
    return cudaSuccess;
}

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
void **__cudaRegisterFatBinary(void *binary) { return calloc(1, sizeof(void *)); }
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
cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                             size_t shared, cudaStream_t stream) {
    return cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel,
                                void **arguments) {
    return cudaSuccess;
}
cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                                        size_t shared, cudaStream_t stream) {
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 64;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    attributes->maxDynamicSharedSizeBytes = 49152;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value) {
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
