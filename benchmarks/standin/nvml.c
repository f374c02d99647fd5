// A stand-in for libnvidia-ml.so.1: what `nvidia-smi` would show of the device, and of one process.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define HANDLE ((void *)0x5000)
#define MEBIBYTE ((uint64_t)1 << 20)

struct memory { uint64_t total, free, used; };
struct memory_v2 { unsigned version; uint64_t total, reserved, free, used; };
struct process { unsigned pid; uint64_t used; unsigned gpu_instance, compute_instance; };

// Published for the H100 of 80 GB: what the driver keeps for itself is what CUDA does not show.
static uint64_t total_bytes(void) { return 81559 * MEBIBYTE; }

// A process that has loaded the driver knows what it takes; any other takes nothing.
static uint64_t used_bytes(void) {
    size_t (*total)(void) = dlsym(RTLD_DEFAULT, "device_total_bytes");
    size_t (*left)(void) = dlsym(RTLD_DEFAULT, "device_free_bytes");
    return total && left ? total() - left() : 0;
}

static int text(char *to, unsigned length, const char *from) {
    strncpy(to, from, length);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { return SUCCESS; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return error == NOT_FOUND ? "Not Found" : "Stand-in"; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return text(version, length, "stand-in");
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = 13000, SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { return *count = 1, SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = HANDLE;
    return index == 0 ? SUCCESS : NOT_FOUND;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { return NOT_FOUND; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) {
    return *device = HANDLE, SUCCESS;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    const char *asked = getenv("STANDIN_NAME");
    return text(name, length, asked ? asked : "Stand-in without a GPU");
}
int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
    uint64_t used = used_bytes();
    *memory = (struct memory){total_bytes(), total_bytes() - used, used};
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory_v2 *memory) {
    uint64_t used = used_bytes();
    *memory = (struct memory_v2){memory->version, total_bytes(), 0, total_bytes() - used, used};
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count,
                                            struct process *processes) {
    unsigned found = used_bytes() > 0, room = *count;
    *count = found;
    if (found > room) return INSUFFICIENT_SIZE;
    if (found) *processes = (struct process){getpid(), used_bytes(), ~0u, ~0u};
    return SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    return *major = 9, *minor = 0, SUCCESS;
}
int nvmlDeviceGetMaxClockInfo(void *device, int type, unsigned *megahertz) {
    return *megahertz = 2619, SUCCESS;
}
int nvmlDeviceGetMemoryBusWidth(void *device, unsigned *lines) { return *lines = 5120, SUCCESS; }
int nvmlDeviceGetNumGpuCores(void *device, unsigned *cores) { return *cores = 132 * 128, SUCCESS; }
