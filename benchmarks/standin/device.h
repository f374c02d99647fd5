// What the stand-ins for libcuda and libcudart share: a device that has memory and computes nothing.
#pragma once
#include <stddef.h>
#include <stdint.h>

// The driver's granularity: cudaMalloc and cuMemCreate take device memory in pages of this size.
#define PAGE_BYTES ((size_t)2 << 20)

size_t device_total_bytes(void);
size_t device_free_bytes(void);

// Take and give back device memory by its size alone; take returns 0 where there is not enough.
int device_take(size_t bytes);
void device_give_back(size_t bytes);

// Addresses of the device: reserved, then backed by host pages that are committed when written.
void *address_reserve(size_t bytes);
void address_back(void *address, size_t bytes);
void address_unback(void *address, size_t bytes);
int address_is_device(const void *address);

// A CUdevice_attribute, whose numbers are those of cudaDeviceAttr too.
int device_attribute(int attribute);
const char *device_name(void);
