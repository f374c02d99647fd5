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
int range_is_device(const void *address, size_t bytes);

// A CUdevice_attribute, whose numbers are those of cudaDeviceAttr too.
int device_attribute(int attribute);
const char *device_name(void);

// Streams, and the captures that they are part of. Functions return what CUDA's would; `refuse_...`
// returns 0 where nothing is being captured that forbids the call.
struct stream {
    struct capture *capture;
    int blocking;
    unsigned long long work, joined;  // pieces of work so far, and those that another waited for
    struct stream *next;
};
struct mark {  // of an event in a stream
    unsigned long long capture;
    struct stream *stream;
    unsigned long long work;
    int recorded;
};
struct stream *stream_of(void *handle);
struct stream *stream_create(unsigned flags);
void stream_destroy(struct stream *stream);
int stream_wait_event(struct stream *stream, const struct mark *mark);
int event_record(struct mark *mark, struct stream *stream);
int add_work(struct stream *stream);
int capture_begin(struct stream *stream, int mode);
int capture_end(struct stream *stream);
int capture_status(struct stream *stream, unsigned long long *id);
int capture_mode_exchange(int mode);
int refuse_unsafe(void);
int refuse_device_wait(void);
int refuse_wait(struct stream *stream);
int refuse_event_wait(const struct mark *mark);

// Whether a launch of these sizes is one that the device can take.
struct launch { unsigned grid[3], block[3], shared; };
int launch_fits(const struct launch *launch, unsigned opted_in_shared);
