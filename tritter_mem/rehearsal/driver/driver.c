// A stand-in for libcuda.so.1: memory is counted and mapped, modules load, kernels do nothing.
//
// It says that it is the card that the environment names, by default an H100, so that PyTorch and
// Triton take the paths that they take there. Memory is address space backed by host pages that are
// committed when written, so a run of many gigabytes needs few.
#define _GNU_SOURCE
#include "device.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ADDRESS_SPACE ((size_t)64 << 40)
#define DEVICE_SPACE (device_space())
#define CONTEXT(device) ((CUcontext)(uintptr_t)(0x1000 + (device)))
#define VERSION (CUDA_MAJOR * 1000)

// NVIDIA's libraries have no such function: by it a process finds that its CUDA is a stand-in.
int tritter_standin_version(void) { return 1; }

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *space, *next_address[MOST_DEVICES];
static unsigned char *backed;  // of each page, whether it holds memory
static unsigned char touched[MOST_DEVICES];
static uint32_t touched_by;
static __thread int current;

static size_t number(const char *variable, size_t otherwise) {
    const char *value = getenv(variable);
    return value && *value ? strtoull(value, NULL, 10) : otherwise;
}

// 81,559 MiB is what nvidia-smi lists for an H100 of 80 GB; the driver keeps some for itself.
size_t device_total_bytes(void) { return number("STANDIN_MEMORY_MIB", 81079) << 20; }
static size_t context_bytes(void) { return number("STANDIN_CONTEXT_MIB", 512) << 20; }
const char *device_name(void) {
    const char *name = getenv("STANDIN_NAME");
    return name ? name : "Stand-in without a GPU";
}

// As many as the environment says, less those that CUDA_VISIBLE_DEVICES hides. They are alike, so
// that only its length matters: a number beyond the last device ends the list, as in CUDA.
int device_count(void) {
    int there = (int)number("STANDIN_DEVICES", 1), count = 0;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (there > MOST_DEVICES) there = MOST_DEVICES;
    if (!visible) return there;
    while (*visible && count < there) {
        char *end;
        long device = strtol(visible, &end, 10);
        int is_uuid = end == visible && strncmp(visible, "GPU-", 4) == 0;
        if (!is_uuid && (end == visible || device < 0 || device >= there)) break;
        count++;
        visible += strcspn(visible, ",");
        if (*visible) visible++;
    }
    return count;
}

// The number among all devices of one that this process sees: memory is shared by that.
static int physical(int device) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    for (int at = 0; visible && *visible && at < device; at++) {
        visible += strcspn(visible, ",");
        if (*visible) visible++;
    }
    if (!visible) return device;
    if (!strncmp(visible, "GPU-", 4)) visible = strrchr(visible, '-') ? strrchr(visible, '-') + 1 : visible;
    long found = strtol(visible, NULL, 10);
    return found >= 0 && found < MOST_DEVICES ? (int)found : device;
}

int tritter_standin_device_number(int device) { return physical(device); }

int device_current(void) { return current; }
int device_set_current(int device) {
    if (device < 0 || device >= device_count()) return 0;
    return current = device, 1;
}
void device_bus_id(int device, char *id, int length) {
    snprintf(id, length, "00000000:%02X:00.0", physical(device) + 1);
}
void device_uuid(int device, char *bytes) {
    memcpy(bytes, "stand-in-no-gpu", 16);
    bytes[15] = (char)physical(device);
}

void device_touch(int device) {
    uint32_t process = session_slot()->pid;
    pthread_mutex_lock(&lock);
    if (touched_by != process) memset(touched, 0, sizeof touched), touched_by = process;
    int first = !touched[device];
    touched[device] = 1;
    pthread_mutex_unlock(&lock);
    if (first) session_take(physical(device), context_bytes(), SIZE_MAX);
}
size_t device_used_by_all(int device) { return session_used(physical(device)); }
size_t device_used_here(int device) { return session_slot()->used[physical(device)]; }
size_t device_free_bytes(int device) {
    device_touch(device);
    size_t used = device_used_by_all(device), total = device_total_bytes();
    return used < total ? total - used : 0;
}

int device_take(int device, size_t bytes) {
    device_touch(device);
    return session_take(physical(device), bytes, device_total_bytes());
}
void device_give_back(int device, size_t bytes) { session_give_back(physical(device), bytes); }

// The devices share the address space evenly.
static size_t device_space(void) {
    static size_t found;
    if (!found) found = ADDRESS_SPACE / (number("STANDIN_DEVICES", 1) > 1 ? MOST_DEVICES : 1);
    return found;
}

static void map_space(void) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    size_t bytes = ADDRESS_SPACE;
    space = mmap(NULL, bytes + REGION_BYTES, PROT_NONE, flags, -1, 0);
    backed = mmap(NULL, bytes / PAGE_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (space == MAP_FAILED || backed == MAP_FAILED) abort();
    space = (char *)(((uintptr_t)space + REGION_BYTES - 1) & ~(uintptr_t)(REGION_BYTES - 1));
}

// Addresses are given as NVIDIA's driver gives them, from high ones to low ones in regions of whole
// 32 MiB: tritter_mem/allocator/addresses.py has the same rule. A region's free ranges are those
// between its ranges in use.
struct range { char *address; size_t bytes; struct range *next; };
struct region { char *start; size_t bytes; struct range *used; struct region *next; };
static struct region *regions[MOST_DEVICES];  // ascending, as the ranges in them

static struct range **room_in(struct region *region, size_t bytes, char **start) {
    struct range **at = &region->used;
    for (*start = region->start; *at; *start = (*at)->address + (*at)->bytes, at = &(*at)->next)
        if ((size_t)((*at)->address - *start) >= bytes) return at;
    return (size_t)(region->start + region->bytes - *start) >= bytes ? at : NULL;
}

// A new region at the end of the highest gap with room; NULL where there is none.
static struct region *new_region(int device, size_t bytes) {
    char *low = space + device * DEVICE_SPACE, *high = low + DEVICE_SPACE, *found = NULL;
    struct region **before = NULL;
    for (struct region **at = &regions[device];; at = &(*at)->next) {
        char *end = *at ? (*at)->start : high;
        if ((size_t)(end - low) >= bytes) found = end - bytes, before = at;
        if (!*at) break;
        low = (*at)->start + (*at)->bytes;
    }
    if (!found) return NULL;
    struct region *region = malloc(sizeof *region);
    *region = (struct region){found, bytes, NULL, *before};
    return *before = region;
}

static size_t whole(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

void *address_reserve(int device, size_t bytes) {
    if (!bytes) return NULL;
    bytes = whole(bytes, PAGE_BYTES);
    pthread_mutex_lock(&lock);
    if (!space) map_space();
    char *start = NULL;
    struct range **before = NULL;
    struct region *region = regions[device];
    while (region && !(before = room_in(region, bytes, &start))) region = region->next;
    if (!region && (region = new_region(device, whole(bytes, REGION_BYTES))))
        start = region->start, before = &region->used;
    if (region) {
        struct range *range = malloc(sizeof *range);
        *range = (struct range){start, bytes, *before};
        *before = range;
    }
    pthread_mutex_unlock(&lock);
    return region ? start : NULL;
}

int address_release(void *address) {
    size_t device = ((char *)address - space) / DEVICE_SPACE;
    if (device >= MOST_DEVICES) return 0;
    pthread_mutex_lock(&lock);
    struct region **at = &regions[device];
    while (*at && (char *)address >= (*at)->start + (*at)->bytes) at = &(*at)->next;
    struct region *region = *at;
    struct range **used = region ? &region->used : NULL;
    while (used && *used && (*used)->address != address) used = &(*used)->next;
    struct range *range = used ? *used : NULL;
    if (range) *used = range->next;
    if (range && !region->used) *at = region->next, free(region);
    pthread_mutex_unlock(&lock);
    free(range);
    return range != NULL;
}

static size_t page_of(const void *address) { return ((const char *)address - space) / PAGE_BYTES; }

void address_back(void *address, size_t bytes) {
    mprotect(address, bytes, PROT_READ | PROT_WRITE);
    memset(backed + page_of(address), 1, bytes / PAGE_BYTES);
}

void address_unback(void *address, size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(address, bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED) abort();
    memset(backed + page_of(address), 0, bytes / PAGE_BYTES);
}

static int address_is_reserved(const void *address) {
    return space && (const char *)address >= space &&
           (const char *)address < space + ADDRESS_SPACE;
}

int address_device(const void *address) {
    if (!address_is_reserved(address) || !backed[page_of(address)]) return -1;
    return ((const char *)address - space) / DEVICE_SPACE;
}

// Not device memory at all, or device memory from the first byte to the last.
int range_is_device(const void *address, size_t bytes) {
    if (!address_is_reserved(address)) return 1;
    for (size_t at = 0; at < bytes; at += PAGE_BYTES)
        if (address_device((const char *)address + at) < 0) return 0;
    return !bytes || address_device((const char *)address + bytes - 1) >= 0;
}

// Host memory that CUDA knows.
static struct range *known;

void host_remember(void *address, size_t bytes) {
    struct range *range = malloc(sizeof *range);
    pthread_mutex_lock(&lock);
    *range = (struct range){address, bytes, known};
    known = range;
    pthread_mutex_unlock(&lock);
}
int host_forget(void *address) {
    pthread_mutex_lock(&lock);
    struct range **at = &known;
    while (*at && (*at)->address != address) at = &(*at)->next;
    struct range *found = *at;
    if (found) *at = found->next;
    pthread_mutex_unlock(&lock);
    free(found);
    return found != NULL;
}
int host_is_known(const void *address) {
    pthread_mutex_lock(&lock);
    const struct range *at = known;
    while (at && ((const char *)address < (char *)at->address ||
                  (const char *)address >= (char *)at->address + at->bytes))
        at = at->next;
    pthread_mutex_unlock(&lock);
    return at != NULL;
}

// Limits by compute capability: CUDA C++ Programming Guide, "Technical Specifications per Compute
// Capability"; caches as NVIDIA publishes them for a card of that generation.
struct limits { int capability, threads, blocks, shared, l2; };
static const struct limits all_limits[] = {
    {70, 2048, 32, 98304, 6291456},   {75, 1024, 16, 65536, 6291456},
    {80, 2048, 32, 167936, 41943040}, {86, 1536, 16, 102400, 6291456},
    {89, 1536, 24, 102400, 75497472}, {90, 2048, 32, 233472, 52428800},
    {100, 2048, 32, 233472, 132120576}, {103, 2048, 32, 233472, 132120576},
    {120, 1536, 24, 102400, 67108864},
};
static int capability(void) {  // 90 for "9.0"
    const char *asked = getenv("STANDIN_CAPABILITY");
    const char *minor = asked ? strchr(asked, '.') : NULL;
    return asked ? atoi(asked) * 10 + (minor ? atoi(minor + 1) : 0) : 90;
}
static const struct limits *limits(void) {
    const struct limits *found = all_limits;
    for (size_t at = 0; at < sizeof all_limits / sizeof *all_limits; at++)
        if (all_limits[at].capability <= capability()) found = &all_limits[at];
    return found;
}
// NVIDIA's published figures of an A100, a B200 and an RTX 5080, else of an H100 SXM.
static size_t multiprocessors(void) {
    int of = capability();
    return number("STANDIN_MULTIPROCESSORS", of == 80 ? 108 : of == 100 ? 148 : of == 120 ? 84 : 132);
}
int device_attribute(int attribute) {
    switch (attribute) {
    case MAX_THREADS_PER_BLOCK: return 1024;
    case MAX_BLOCK_DIM_X: return 1024;
    case MAX_BLOCK_DIM_Y: return 1024;
    case MAX_BLOCK_DIM_Z: return 64;
    case MAX_GRID_DIM_X: return 2147483647;
    case MAX_GRID_DIM_Y: return 65535;
    case MAX_GRID_DIM_Z: return 65535;
    case MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
    case MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return limits()->shared - 1024;
    case MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return limits()->shared;
    case RESERVED_SHARED_MEMORY_PER_BLOCK: return 1024;
    case WARP_SIZE: return 32;
    case MAX_PITCH: return 2147483647;
    case MAX_REGISTERS_PER_BLOCK: return 65536;
    case MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CLOCK_RATE: return 1980000;
    case MEMORY_CLOCK_RATE: return 2619000;
    case GLOBAL_MEMORY_BUS_WIDTH: return 5120;
    case TEXTURE_ALIGNMENT: return 512;
    case MULTIPROCESSOR_COUNT: return multiprocessors();
    case MAX_THREADS_PER_MULTIPROCESSOR: return limits()->threads;
    case MAX_BLOCKS_PER_MULTIPROCESSOR: return limits()->blocks;
    case L2_CACHE_SIZE: return limits()->l2;
    case COMPUTE_CAPABILITY_MAJOR: return capability() / 10;
    case COMPUTE_CAPABILITY_MINOR: return capability() % 10;
    case ASYNC_ENGINE_COUNT: return 3;
    case GPU_OVERLAP: return 1;
    case TOTAL_CONSTANT_MEMORY: return 65536;
    case CONCURRENT_KERNELS:
    case CAN_MAP_HOST_MEMORY:
    case CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM:
    case MANAGED_MEMORY:
    case UNIFIED_ADDRESSING:
    case COOPERATIVE_LAUNCH:
    case VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case STREAM_PRIORITIES_SUPPORTED: return 1;
    default: return 0;
    }
}

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = VERSION, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal >= 0 && ordinal < device_count() ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetCount(int *count) { return *count = device_count(), CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    snprintf(name, length, "%s", device_name());
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) {
    return device_uuid(device, uuid->bytes), CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) { return cuDeviceGetUuid(uuid, device); }
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    *value = attribute == PCI_BUS_ID ? physical(device) + 1 : device_attribute(attribute);
    return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
    return *bytes = device_total_bytes(), CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { return cuDeviceTotalMem(bytes, device); }
CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    return *can = device != peer, CUDA_SUCCESS;
}
CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    return *free_bytes = device_free_bytes(current), *total = device_total_bytes(), CUDA_SUCCESS;
}

static int device_of_context(CUcontext context) {
    long device = (long)(uintptr_t)context - 0x1000;
    return device >= 0 && device < MOST_DEVICES ? (int)device : current;
}
CUresult cuCtxGetCurrent(CUcontext *context) { return *context = CONTEXT(current), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) {
    return current = device_of_context(context), CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext context) { return cuCtxSetCurrent(context); }
CUresult cuCtxPushCurrent_v2(CUcontext context) { return cuCtxSetCurrent(context); }
CUresult cuCtxPopCurrent(CUcontext *context) {
    if (context) *context = CONTEXT(current);
    return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent_v2(CUcontext *context) { return cuCtxPopCurrent(context); }
CUresult cuCtxGetDevice(CUdevice *device) { return *device = current, CUDA_SUCCESS; }
// CUDA 13.1 adds a context, which older callers do not pass: it is not read.
CUresult cuCtxGetDevice_v2(CUdevice *device, CUcontext context) { return cuCtxGetDevice(device); }
CUresult cuCtxGetLimit(size_t *value, int limit) { return *value = 0, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(int limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuCtxSynchronize(void) { return refuse_device_wait(); }
CUresult cuCtxSynchronize_v2(CUcontext context) { return cuCtxSynchronize(); }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    return *context = CONTEXT(device), CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice device) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { return CUDA_SUCCESS; }
// PyTorch asks it of other devices before it makes a context of its own there.
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    return *flags = 0, *active = touched[device] || device == current, CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    switch (error) {
    case CUDA_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
    case CUDA_ERROR_OUT_OF_MEMORY: *text = "out of memory"; break;
    case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED:
        *text = "operation not permitted when stream is capturing";
        break;
    default: *text = "stand-in error";
    }
    return CUDA_SUCCESS;
}

// Kernels that are loaded: Triton's. Loading code waits for the device, which captures forbid.
struct kernel { char name[128]; unsigned opted_in_shared; };

CUresult cuGetErrorName(CUresult error, const char **text) {
    return *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR",
           CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    return *module = (CUmodule)0x2000, refuse_unsafe();
}
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned count, int *options,
                            void **values) {
    return cuModuleLoadData(module, image);
}
CUresult cuModuleLoad(CUmodule *module, const char *path) { return cuModuleLoadData(module, path); }
CUresult cuLibraryLoadData(CUlibrary *library, const void *code, int *options, void **values,
                           unsigned count, int *library_options, void **library_values,
                           unsigned library_count) {
    return cuModuleLoadData(library, code);
}
CUresult cuLibraryUnload(CUlibrary library) { return refuse_unsafe(); }
CUresult cuModuleUnload(CUmodule module) { return refuse_unsafe(); }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    struct kernel *kernel = calloc(1, sizeof *kernel);
    strncpy(kernel->name, name, sizeof kernel->name - 1);
    return *function = (CUfunction)kernel, CUDA_SUCCESS;
}
CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name) {
    return cuModuleGetFunction(kernel, library, name);
}
CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel) {
    return *function = kernel, CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction function) {
    switch (attribute) {
    case FUNCTION_MAX_THREADS: *value = 1024; break;
    case FUNCTION_REGISTERS: *value = 64; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
    if (attribute >= FUNCTIONS) return CUDA_ERROR_INVALID_VALUE;  // of a later driver
    if (attribute != FUNCTION_DYNAMIC_SHARED) return CUDA_SUCCESS;
    if (value > device_attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN))
        return CUDA_ERROR_INVALID_VALUE;
    ((struct kernel *)function)->opted_in_shared = value;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction function, int config) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int size,
                                                     size_t shared) {
    return *blocks = 2, CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function,
                                      const CUlaunchConfig *config) {
    return *clusters = 66, CUDA_SUCCESS;
}
int launch_fits(const struct launch *launch, unsigned opted_in_shared) {
    unsigned threads = 1, shared = device_attribute(MAX_SHARED_MEMORY_PER_BLOCK);
    for (int axis = 0; axis < 3; axis++) {
        unsigned blocks = device_attribute(MAX_GRID_DIM_X + axis);
        unsigned size = device_attribute(MAX_BLOCK_DIM_X + axis);
        if (launch->grid[axis] - 1u >= blocks || launch->block[axis] - 1u >= size) return 0;
        threads *= launch->block[axis];
    }
    if (opted_in_shared > shared) shared = opted_in_shared;
    return threads <= 1024 && launch->shared <= shared;
}

// The launches, a line each, where STANDIN_LOG names a file.
static void log_launch(const struct launch *launch, const char *name) {
    static FILE *file;
    const char *path = getenv("STANDIN_LOG");
    if (!path) return;
    if (!file) file = fopen(path, "a");
    if (!file) return;
    fprintf(file, "%s %u %u %u %u %u\n", name, launch->grid[0], launch->grid[1], launch->grid[2],
            launch->block[0], launch->shared);
    fflush(file);
}

CUresult cuLaunchKernel(CUfunction function, unsigned x, unsigned y, unsigned z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, CUstream stream,
                        void **arguments, void **extra) {
    struct launch launch = {{x, y, z}, {block_x, block_y, block_z}, shared};
    struct kernel *kernel = (struct kernel *)function;
    if (!launch_fits(&launch, kernel->opted_in_shared)) return CUDA_ERROR_INVALID_VALUE;
    log_launch(&launch, kernel->name);
    return add_work(stream_of(stream));
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *to, CUfunction function, void **arguments,
                          void **extra) {
    return cuLaunchKernel(function, to->gridDimX, to->gridDimY, to->gridDimZ, to->blockDimX,
                          to->blockDimY, to->blockDimZ, to->sharedMemBytes, to->hStream, arguments,
                          extra);
}
CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned x, unsigned y, unsigned z,
                                   unsigned block_x, unsigned block_y, unsigned block_z,
                                   unsigned shared, CUstream stream, void **arguments) {
    return cuLaunchKernel(function, x, y, z, block_x, block_y, block_z, shared, stream, arguments,
                          NULL);
}
// What a kernel reads of it, no kernel reads here; it is written all the same.
CUresult cuTensorMapEncodeTiled(void *map, int type, unsigned rank, void *address,
                                const uint64_t *size, const uint64_t *strides, const uint32_t *box,
                                const uint32_t *element_strides, int interleave, int swizzle,
                                int promotion, int fill) {
    return memset(map, 0, 128), CUDA_SUCCESS;
}

// Virtual memory: what expandable segments are made of. A handle says its size and its device.
#define HANDLE(device, bytes) ((CUmemGenericAllocationHandle)(bytes) / PAGE_BYTES << 8 | (device))
#define HANDLE_DEVICE(handle) ((int)((handle) & 255))
#define HANDLE_BYTES(handle) ((size_t)((handle) >> 8) * PAGE_BYTES)

CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *properties,
                                       int option) {
    return *bytes = PAGE_BYTES, CUDA_SUCCESS;
}
CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint,
                             unsigned long long flags) {
    *address = (CUdeviceptr)(uintptr_t)address_reserve(current, bytes);
    return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
    return address_release((void *)(uintptr_t)address) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
                     const CUmemAllocationProp *properties, unsigned long long flags) {
    int on_device = properties->location.type == LOCATION_DEVICE;
    int device = on_device ? properties->location.id : current;
    if (!on_device) return CUDA_ERROR_NOT_SUPPORTED;
    if (bytes % PAGE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    if (!device_take(device, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    return *handle = HANDLE(device, bytes), CUDA_SUCCESS;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    device_give_back(HANDLE_DEVICE(handle), HANDLE_BYTES(handle));
    return CUDA_SUCCESS;
}
CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                  CUmemGenericAllocationHandle handle, unsigned long long flags) {
    address_back((void *)(uintptr_t)address, bytes);
    return CUDA_SUCCESS;
}
CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
    address_unback((void *)(uintptr_t)address, bytes);
    return CUDA_SUCCESS;
}
CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const void *access, size_t count) {
    return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr pointer) {
    const void *address = (void *)(uintptr_t)pointer;
    int device = address_device(address), pinned = device < 0 && host_is_known(address);
    if (device < 0 && !pinned) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case POINTER_CONTEXT: *(CUcontext *)data = CONTEXT(pinned ? current : device); break;
    case POINTER_MEMORY_TYPE: *(unsigned *)data = pinned ? MEMORY_HOST : MEMORY_DEVICE; break;
    case POINTER_DEVICE: *(CUdeviceptr *)data = pointer; break;
    case POINTER_HOST:
        if (!pinned) return CUDA_ERROR_INVALID_VALUE;
        *(const void **)data = address;
        break;
    case POINTER_BUFFER_ID: *(unsigned long long *)data = pointer / PAGE_BYTES; break;
    case POINTER_IS_MANAGED: *(unsigned *)data = 0; break;
    case POINTER_DEVICE_ORDINAL: *(int *)data = pinned ? current : device; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}
CUresult cuPointerSetAttribute(const void *value, int attribute, CUdeviceptr pointer) {
    return CUDA_SUCCESS;
}

// A function goes by its own name or, where it was once changed, by its second.
static void *function_of(const char *name) {
    static void *driver;
    char second[128];
    Dl_info here;
    if (!driver && dladdr(function_of, &here)) driver = dlopen(here.dli_fname, RTLD_NOW);
    snprintf(second, sizeof second, "%s_v2", name);
    void *newer = dlsym(driver, second);
    return newer ? newer : dlsym(driver, name);
}
CUresult cuGetProcAddress_v2(const char *name, void **function, int version,
                             unsigned long long flags, int *status) {
    *function = function_of(name);
    if (status) *status = *function ? 0 : 1;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
CUresult cuGetProcAddress(const char *name, void **function, int version,
                          unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

// The linker of compiled code, which has nothing to link.
CUresult cuLinkCreate_v2(unsigned count, int *options, void **values, void **state) {
    return *state = calloc(1, 8), CUDA_SUCCESS;
}
CUresult cuLinkAddData_v2(void *state, int type, void *data, size_t bytes, const char *name,
                          unsigned count, int *options, void **values) {
    return CUDA_SUCCESS;
}
CUresult cuLinkComplete(void *state, void **cubin, size_t *bytes) {
    return *cubin = state, *bytes = 8, CUDA_SUCCESS;
}
CUresult cuLinkDestroy(void *state) { return free(state), CUDA_SUCCESS; }

// What the driver would log; it logs nothing.
CUresult cuLogsRegisterCallback(void *callback, void *data, void **handle) {
    if (handle) *handle = callback;
    return CUDA_SUCCESS;
}
CUresult cuLogsUnregisterCallback(void *handle) { return CUDA_SUCCESS; }

CUresult cuMemsetD32Async(CUdeviceptr address, unsigned value, size_t count, CUstream stream) {
    for (size_t at = 0; at < count && at < PAGE_BYTES / 4; at++)
        ((unsigned *)(uintptr_t)address)[at] = value;
    return add_work(stream_of(stream));
}
