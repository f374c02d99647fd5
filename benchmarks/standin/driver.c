// A stand-in for libcuda.so.1: memory is counted and mapped, modules load, kernels do nothing.
//
// It says it is an H100, so that PyTorch and Triton take the paths they take there. Memory is
// address space backed by host pages that nothing writes, so a run of many gigabytes needs few.
#define _GNU_SOURCE
#include "device.h"

#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ADDRESS_SPACE ((size_t)64 << 40)
#define CONTEXT ((CUcontext)0x1000)

// NVIDIA's libraries have no such function: by it a process finds that its CUDA is a stand-in.
int tritter_standin_version(void) { return 1; }

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *space, *next_address, *backed;  // backed: of each page, whether it holds memory
static size_t taken;

static size_t mebibytes(const char *variable, size_t otherwise) {
    const char *value = getenv(variable);
    return (value ? strtoull(value, NULL, 10) : otherwise) << 20;
}

// 81,559 MiB is what nvidia-smi lists for an H100 of 80 GB; the driver keeps some for itself.
size_t device_total_bytes(void) { return mebibytes("STANDIN_MEMORY_MIB", 81079); }
static size_t context_bytes(void) { return mebibytes("STANDIN_CONTEXT_MIB", 512); }
const char *device_name(void) {
    const char *name = getenv("STANDIN_NAME");
    return name ? name : "Stand-in without a GPU";
}

size_t device_free_bytes(void) {
    pthread_mutex_lock(&lock);
    size_t used = taken + context_bytes();
    pthread_mutex_unlock(&lock);
    return used < device_total_bytes() ? device_total_bytes() - used : 0;
}

int device_take(size_t bytes) {
    pthread_mutex_lock(&lock);
    int fits = taken + bytes + context_bytes() <= device_total_bytes();
    if (fits) taken += bytes;
    pthread_mutex_unlock(&lock);
    return fits;
}

void device_give_back(size_t bytes) {
    pthread_mutex_lock(&lock);
    taken -= bytes;
    pthread_mutex_unlock(&lock);
}

void *address_reserve(size_t bytes) {
    pthread_mutex_lock(&lock);
    if (!space) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        space = mmap(NULL, ADDRESS_SPACE, PROT_NONE, flags, -1, 0);
        backed = mmap(NULL, ADDRESS_SPACE / PAGE_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (space == MAP_FAILED || backed == MAP_FAILED) abort();
        next_address = (char *)(((uintptr_t)space + PAGE_BYTES - 1) & ~(uintptr_t)(PAGE_BYTES - 1));
    }
    char *address = next_address;
    next_address += bytes;
    pthread_mutex_unlock(&lock);
    return next_address <= space + ADDRESS_SPACE ? address : NULL;
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
    return space && (const char *)address >= space && (const char *)address < space + ADDRESS_SPACE;
}

int address_is_device(const void *address) {
    return address_is_reserved(address) && backed[page_of(address)];
}

// Not device memory at all, or device memory from the first byte to the last.
int range_is_device(const void *address, size_t bytes) {
    if (!address_is_reserved(address)) return 1;
    for (size_t at = 0; at < bytes; at += PAGE_BYTES)
        if (!address_is_device((const char *)address + at)) return 0;
    return !bytes || address_is_device((const char *)address + bytes - 1);
}

// NVIDIA's published figures of an A100, an H100 SXM, a B200 and an RTX 5080: `STANDIN_CAPABILITY`.
struct model {
    const char *capability;
    int major, minor, multiprocessors, threads, blocks, shared, l2;
};
static const struct model models[] = {
    {"9.0", 9, 0, 132, 2048, 32, 233472, 52428800},
    {"8.0", 8, 0, 108, 2048, 32, 167936, 41943040},
    {"10.0", 10, 0, 148, 2048, 32, 233472, 132120576},
    {"12.0", 12, 0, 84, 1536, 24, 102400, 67108864},
};
static const struct model *model(void) {
    const char *asked = getenv("STANDIN_CAPABILITY");
    for (size_t at = 0; asked && at < sizeof models / sizeof *models; at++)
        if (!strcmp(asked, models[at].capability)) return &models[at];
    return models;
}

int device_attribute(int attribute) {
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return model()->shared - 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return model()->shared;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: return 65536;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1980000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2619000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 5120;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return model()->multiprocessors;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return model()->threads;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return model()->blocks;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return model()->l2;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return model()->major;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return model()->minor;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 3;
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED: return 1;
    default: return 0;
    }
}

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetCount(int *count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    strncpy(name, device_name(), length);
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    *value = device_attribute(attribute);
    return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
    return *bytes = device_total_bytes(), CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) { return *context = CONTEXT, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent(CUcontext *context) { return *context = CONTEXT, CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice *device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return *value = 0, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    return *context = CONTEXT, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    return *flags = 0, *active = 1, CUDA_SUCCESS;
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

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    return *module = (CUmodule)0x2000, refuse_unsafe();
}
CUresult cuModuleUnload(CUmodule module) { return refuse_unsafe(); }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    struct kernel *kernel = calloc(1, sizeof *kernel);
    strncpy(kernel->name, name, sizeof kernel->name - 1);
    return *function = (CUfunction)kernel, CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 64; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    if (attribute >= CU_FUNC_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;  // of a later driver
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value > device_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN))
        return CUDA_ERROR_INVALID_VALUE;
    ((struct kernel *)function)->opted_in_shared = value;
    return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int size,
                                                     size_t shared) {
    return *blocks = 2, CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function,
                                      const CUlaunchConfig *config) {
    return *clusters = 66, CUDA_SUCCESS;
}
int launch_fits(const struct launch *launch, unsigned opted_in_shared) {
    unsigned threads = 1, shared = device_attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK);
    for (int axis = 0; axis < 3; axis++) {
        unsigned blocks = device_attribute(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X + axis);
        unsigned size = device_attribute(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X + axis);
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
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *address, const cuuint64_t *size, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *element_strides,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
    return CUDA_SUCCESS;
}

// Virtual memory: what expandable segments are made of.
CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *properties,
                                       CUmemAllocationGranularity_flags option) {
    return *bytes = PAGE_BYTES, CUDA_SUCCESS;
}
CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint,
                             unsigned long long flags) {
    *address = (CUdeviceptr)address_reserve(bytes);
    return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) { return CUDA_SUCCESS; }
CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
                     const CUmemAllocationProp *properties, unsigned long long flags) {
    if (!device_take(bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    *handle = bytes;
    return CUDA_SUCCESS;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    device_give_back(handle);
    return CUDA_SUCCESS;
}
CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                  CUmemGenericAllocationHandle handle, unsigned long long flags) {
    address_back((void *)address, bytes);
    return CUDA_SUCCESS;
}
CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
    address_unback((void *)address, bytes);
    return CUDA_SUCCESS;
}
CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access,
                        size_t count) {
    return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr address) {
    if (!address_is_device((void *)address)) return CUDA_ERROR_INVALID_VALUE;
    if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) *(CUdeviceptr *)data = address;
    return CUDA_SUCCESS;
}
