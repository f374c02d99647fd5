// What the stand-ins share: devices that have memory and compute nothing.
#pragma once
#include "cuda_types.h"

// Shared by several libraries, and so visible to the whole process: they must be nobody else's names.
#define add_work tritter_standin_add_work
#define address_back tritter_standin_address_back
#define address_device tritter_standin_address_device
#define address_release tritter_standin_address_release
#define address_reserve tritter_standin_address_reserve
#define address_unback tritter_standin_address_unback
#define capture_begin tritter_standin_capture_begin
#define capture_end tritter_standin_capture_end
#define capture_mode_exchange tritter_standin_capture_mode_exchange
#define capture_status tritter_standin_capture_status
#define device_attribute tritter_standin_device_attribute
#define device_bus_id tritter_standin_device_bus_id
#define device_count tritter_standin_device_count
#define device_current tritter_standin_device_current
#define device_free_bytes tritter_standin_device_free_bytes
#define device_give_back tritter_standin_device_give_back
#define device_name tritter_standin_device_name
#define device_set_current tritter_standin_device_set_current
#define device_take tritter_standin_device_take
#define device_total_bytes tritter_standin_device_total_bytes
#define device_touch tritter_standin_device_touch
#define device_used_by_all tritter_standin_device_used_by_all
#define device_used_here tritter_standin_device_used_here
#define device_uuid tritter_standin_device_uuid
#define event_record tritter_standin_event_record
#define host_forget tritter_standin_host_forget
#define host_is_known tritter_standin_host_is_known
#define host_remember tritter_standin_host_remember
#define launch_fits tritter_standin_launch_fits
#define range_is_device tritter_standin_range_is_device
#define refuse_device_wait tritter_standin_refuse_device_wait
#define refuse_event_wait tritter_standin_refuse_event_wait
#define refuse_unsafe tritter_standin_refuse_unsafe
#define refuse_wait tritter_standin_refuse_wait
#define session_folder tritter_standin_session_folder
#define session_give_back tritter_standin_session_give_back
#define session_note_stub tritter_standin_session_note_stub
#define session_processes tritter_standin_session_processes
#define session_refuse tritter_standin_session_refuse
#define session_slot tritter_standin_session_slot
#define session_take tritter_standin_session_take
#define session_used tritter_standin_session_used
#define stream_create tritter_standin_stream_create
#define stream_destroy tritter_standin_stream_destroy
#define stream_of tritter_standin_stream_of
#define stream_wait_event tritter_standin_stream_wait_event


// The driver's granularity: cudaMalloc and cuMemCreate take device memory in pages of this size.
#define PAGE_BYTES ((size_t)2 << 20)
// What the driver reserves addresses in.
#define REGION_BYTES ((size_t)32 << 20)
#define MOST_DEVICES 16
#define TORCH_FIGURES 8

// The devices are alike. Each thread has a current one, as in CUDA.
int device_count(void);
int device_current(void);
int device_set_current(int device);  // 0 where there is no such device
size_t device_total_bytes(void);
size_t device_used_by_all(int device);
size_t device_used_here(int device);
size_t device_free_bytes(int device);
void device_touch(int device);  // the process's context there comes to be

// Take and give back device memory by its size alone; take returns 0 where there is not enough.
int device_take(int device, size_t bytes);
void device_give_back(int device, size_t bytes);

// Addresses of a device: reserved, then backed by host pages that are committed when written.
void *address_reserve(int device, size_t bytes);
int address_release(void *address);  // 0 where nothing begins there
void address_back(void *address, size_t bytes);
void address_unback(void *address, size_t bytes);
int address_device(const void *address);  // -1 where it is no memory of a device
int range_is_device(const void *address, size_t bytes);

// Host memory that CUDA knows: pinned or registered.
void host_remember(void *address, size_t bytes);
int host_forget(void *address);
int host_is_known(const void *address);

// A CUdevice_attribute, whose numbers are those of cudaDeviceAttr too.
int device_attribute(int attribute);
const char *device_name(void);
void device_bus_id(int device, char *id, int length);
void device_uuid(int device, char *bytes);

// What the processes of a rehearsal share: a file in the folder that STANDIN_SESSION names. Each
// process that uses a device has a slot; PyTorch's figures in it are written from Python.
struct slot {
    uint32_t pid, in_use;
    uint64_t used[MOST_DEVICES], peak[MOST_DEVICES], torch[MOST_DEVICES][TORCH_FIGURES];
};
struct slot *session_slot(void);
size_t session_used(int device);
int session_take(int device, size_t bytes, size_t limit);
void session_give_back(int device, size_t bytes);
const char *session_folder(void);  // NULL outside of a rehearsal
void session_note_stub(const char *function);
long session_refuse(const char *function, long code);
size_t session_processes(int device, uint32_t *pids, uint64_t *used, size_t room);

// Streams, and the captures that they are part of. Functions return what CUDA's would; `refuse_...`
// returns 0 where nothing is being captured that forbids the call.
struct stream {
    struct capture *capture;
    int blocking, device;
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
