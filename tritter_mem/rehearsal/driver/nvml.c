// A stand-in for libnvidia-ml.so.1: what `nvidia-smi` would show of the device, and of one process.
#define _GNU_SOURCE
#include "device.h"

#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SUCCESS 0
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define HANDLE(device) ((void *)(uintptr_t)(0x5000 + (device)))
#define DEVICE(handle) ((int)(uintptr_t)(handle) - 0x5000)
#define MOST_PROCESSES 64
#define MEBIBYTE ((uint64_t)1 << 20)

struct memory { uint64_t total, free, used; };
struct memory_v2 { unsigned version; uint64_t total, reserved, free, used; };
struct process { unsigned pid; uint64_t used; unsigned gpu_instance, compute_instance; };

// What nvidia-smi lists of the card; the driver keeps some of it for itself.
static uint64_t total_bytes(void) {
    const char *listed = getenv("STANDIN_LISTED_MIB");
    return (listed ? strtoull(listed, NULL, 10) : 81559) * MEBIBYTE;
}
static uint64_t used_bytes(void *device) { return device_used_by_all(DEVICE(device)); }

static int text(char *to, unsigned length, const char *from) {
    snprintf(to, length, "%s", from);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { return SUCCESS; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return error == NOT_FOUND ? "Not Found" : "Stand-in"; }
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return text(version, length, "stand-in");
}
int nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = CUDA_MAJOR * 1000, SUCCESS; }
int nvmlSystemGetCudaDriverVersion(int *version) {
    return nvmlSystemGetCudaDriverVersion_v2(version);
}
int nvmlDeviceGetCount_v2(unsigned *count) { return *count = device_count(), SUCCESS; }
int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = HANDLE(index);
    return index < (unsigned)device_count() ? SUCCESS : NOT_FOUND;
}
int nvmlDeviceGetHandleByIndex(unsigned index, void **device) {
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}
static void uuid_text(int device, char *to, unsigned length) {
    char bytes[16];
    device_uuid(device, bytes);
    snprintf(to, length, "GPU-%08x-0000-0000-0000-%012d", 0x5d000000u, bytes[15]);
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    return uuid_text(DEVICE(device), uuid, length), SUCCESS;
}
int nvmlDeviceGetIndex(void *device, unsigned *index) { return *index = DEVICE(device), SUCCESS; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    char other[64];
    for (int at = 0; at < device_count(); at++) {
        uuid_text(at, other, sizeof other);
        if (!strcmp(uuid, other)) return *device = HANDLE(at), SUCCESS;
    }
    return NOT_FOUND;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) {
    char other[32];
    for (int at = 0; at < device_count(); at++) {
        device_bus_id(at, other, sizeof other);
        if (strlen(id) >= 12 && !strncasecmp(id + strlen(id) - 12, other + 4, 12))
            return *device = HANDLE(at), SUCCESS;
    }
    return NOT_FOUND;
}
int nvmlDeviceGetHandleByPciBusId(const char *id, void **device) {
    return nvmlDeviceGetHandleByPciBusId_v2(id, device);
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    return text(name, length, device_name());
}
int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
    uint64_t used = used_bytes(device);
    *memory = (struct memory){total_bytes(), total_bytes() - used, used};
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory_v2 *memory) {
    uint64_t used = used_bytes(device);
    *memory = (struct memory_v2){memory->version, total_bytes(), 0, total_bytes() - used, used};
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count,
                                            struct process *processes) {
    uint32_t pids[MOST_PROCESSES];
    uint64_t used[MOST_PROCESSES];
    unsigned found = session_processes(DEVICE(device), pids, used, MOST_PROCESSES), room = *count;
    *count = found;
    if (found > room) return INSUFFICIENT_SIZE;
    for (unsigned at = 0; at < found && at < MOST_PROCESSES; at++)
        processes[at] = (struct process){pids[at], used[at], ~0u, ~0u};
    return SUCCESS;
}
// PyTorch looks this one up, and lists the processes of its out-of-memory errors by it.
int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, struct process *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, processes);
}
int nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned *count,
                                            struct process *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, processes);
}
// As among the cards of one machine with NVLink.
int nvmlDeviceGetP2PStatus(void *device, void *peer, int index, int *status) {
    return *status = 0, SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    *major = device_attribute(COMPUTE_CAPABILITY_MAJOR);
    return *minor = device_attribute(COMPUTE_CAPABILITY_MINOR), SUCCESS;
}
int nvmlDeviceGetMaxClockInfo(void *device, int type, unsigned *megahertz) {
    return *megahertz = 2619, SUCCESS;
}
int nvmlDeviceGetMemoryBusWidth(void *device, unsigned *lines) { return *lines = 5120, SUCCESS; }
int nvmlDeviceGetNumGpuCores(void *device, unsigned *cores) { 
    return *cores = device_attribute(MULTIPROCESSOR_COUNT) * 128, SUCCESS;
 }
// As a card answers that is in no fabric of several machines, with success and state 0: PyTorch 2.13
// takes nothing else before it makes an expandable segment. The later forms begin with their version.
struct fabric { unsigned char cluster[16]; int status; unsigned clique; unsigned char state; };
int nvmlDeviceGetGpuFabricInfo(void *device, struct fabric *info) {
    return *info = (struct fabric){{0}}, SUCCESS;
}
int nvmlDeviceGetGpuFabricInfoV(void *device, void *info) {
    return nvmlDeviceGetGpuFabricInfo(device, (struct fabric *)((unsigned *)info + 1));
}
int nvmlDeviceGetGpuFabricInfo_v4(void *device, void *info) {
    return nvmlDeviceGetGpuFabricInfoV(device, info);
}
