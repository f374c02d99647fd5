// What CUDA refuses while streams are captured into graphs.
//
// The rules are those of the CUDA C++ Programming Guide, "Stream Capture": what would wait for
// captured work, and what joins work from outside, fails and spoils the capture; calls that may
// wait for the device behind the caller's back fail by the mode of capture
// (cudaThreadExchangeStreamCaptureMode). Where the guide leaves it open, a call is refused.
#define _GNU_SOURCE
#include "device.h"

#include <pthread.h>
#include <stdlib.h>

struct capture {
    unsigned long long id;
    int mode;
    pthread_t thread;
    struct stream *origin;
    int spoilt;
    struct capture *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct capture *underway;
static struct stream *streams;
static unsigned long long captures;
static struct stream legacy_streams[MOST_DEVICES];
static __thread int thread_mode = CAPTURE_GLOBAL;

static int is_legacy(const struct stream *stream) {
    return stream >= legacy_streams && stream < legacy_streams + MOST_DEVICES;
}

struct stream *stream_of(void *handle) {
    return (uintptr_t)handle <= 2 ? &legacy_streams[device_current()] : (struct stream *)handle;
}

struct stream *stream_create(unsigned flags) {
    struct stream *made = calloc(1, sizeof *made);
    made->device = device_current();
    made->blocking = !(flags & STREAM_NON_BLOCKING);
    pthread_mutex_lock(&lock);
    made->next = streams, streams = made;
    pthread_mutex_unlock(&lock);
    return made;
}

void stream_destroy(struct stream *stream) {
    pthread_mutex_lock(&lock);
    struct stream **at = &streams;
    while (*at && *at != stream) at = &(*at)->next;
    if (*at) *at = stream->next, free(stream);
    pthread_mutex_unlock(&lock);
}

static int spoil(struct capture *capture, int error) {
    capture->spoilt = 1;
    return error;
}

static int refused_by_mode(struct capture *capture) {
    int own = pthread_equal(capture->thread, pthread_self());
    if (thread_mode == CAPTURE_RELAXED) return 0;
    if (own) return capture->mode != CAPTURE_RELAXED;
    return thread_mode == CAPTURE_GLOBAL && capture->mode == CAPTURE_GLOBAL;
}

// A call that may wait for the device: memory taken or freed, code loaded, events asked.
int refuse_unsafe(void) {
    int error = 0;
    pthread_mutex_lock(&lock);
    for (struct capture *capture = underway; capture; capture = capture->next)
        if (refused_by_mode(capture)) error = spoil(capture, cudaErrorStreamCaptureUnsupported);
    pthread_mutex_unlock(&lock);
    return error;
}

// A call that waits for the whole device, or asks whether it is done.
int refuse_device_wait(void) {
    int error = 0;
    pthread_mutex_lock(&lock);
    for (struct capture *capture = underway; capture; capture = capture->next)
        error = spoil(capture, cudaErrorStreamCaptureUnsupported);
    pthread_mutex_unlock(&lock);
    return error;
}

// A call that waits for a stream, or asks whether it is done.
int refuse_wait(struct stream *stream) {
    if (!stream->capture) return refuse_unsafe();
    return spoil(stream->capture, cudaErrorStreamCaptureUnsupported);
}

// Work for a spoilt capture; the legacy stream waits for all streams that are blocking.
static int refuse_work(struct stream *stream) {
    int error = 0;
    pthread_mutex_lock(&lock);
    if (stream->capture && stream->capture->spoilt) error = cudaErrorStreamCaptureInvalidated;
    if (is_legacy(stream))
        for (struct stream *other = streams; other; other = other->next)
            if (other->capture && other->blocking && other->device == stream - legacy_streams)
                error = spoil(other->capture, cudaErrorStreamCaptureImplicit);
    pthread_mutex_unlock(&lock);
    return error;
}

int add_work(struct stream *stream) {
    stream->work++;
    return refuse_work(stream);
}

int capture_begin(struct stream *stream, int mode) {
    if (is_legacy(stream)) return cudaErrorStreamCaptureUnsupported;
    if (stream->capture) return cudaErrorIllegalState;
    struct capture *begun = calloc(1, sizeof *begun);
    pthread_mutex_lock(&lock);
    *begun = (struct capture){++captures, mode, pthread_self(), stream, 0, underway};
    underway = stream->capture = begun;
    stream->joined = stream->work;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

// Streams of a capture leave it; whether one still has work that the origin did not wait for.
static int leave(struct capture *capture) {
    int unjoined = 0;
    for (struct stream *stream = streams; stream; stream = stream->next) {
        if (stream->capture != capture) continue;
        unjoined |= stream != capture->origin && stream->joined != stream->work;
        stream->capture = NULL;
    }
    return unjoined;
}

int capture_end(struct stream *stream) {
    struct capture *ended = stream->capture;
    if (!ended) return cudaErrorIllegalState;
    if (ended->origin != stream) return spoil(ended, cudaErrorStreamCaptureUnmatched);
    if (ended->mode != CAPTURE_RELAXED && !pthread_equal(ended->thread, pthread_self()))
        return spoil(ended, cudaErrorStreamCaptureWrongThread);
    pthread_mutex_lock(&lock);
    int unjoined = leave(ended), spoilt = ended->spoilt;
    struct capture **at = &underway;
    while (*at != ended) at = &(*at)->next;
    *at = ended->next;
    pthread_mutex_unlock(&lock);
    free(ended);
    if (spoilt) return cudaErrorStreamCaptureInvalidated;
    return unjoined ? cudaErrorStreamCaptureUnjoined : cudaSuccess;
}

int capture_status(struct stream *stream, unsigned long long *id) {
    if (!stream->capture) return CAPTURE_NONE;
    *id = stream->capture->id;
    return stream->capture->spoilt ? CAPTURE_INVALIDATED
                                   : CAPTURE_ACTIVE;
}

int capture_mode_exchange(int mode) {
    int before = thread_mode;
    thread_mode = mode;
    return before;
}

// An event of a capture stands for a node of its graph.
int event_record(struct mark *mark, struct stream *stream) {
    *mark = (struct mark){stream->capture ? stream->capture->id : 0, stream, stream->work, 1};
    return refuse_work(stream);
}

int refuse_event_wait(const struct mark *mark) {
    if (!mark->capture) return refuse_unsafe();
    for (struct capture *capture = underway; capture; capture = capture->next)
        if (capture->id == mark->capture) spoil(capture, 0);
    return cudaErrorCapturedEvent;
}

// A stream that waits for an event of a capture joins it; what is captured waits for no other.
int stream_wait_event(struct stream *stream, const struct mark *mark) {
    if (!mark->recorded) return cudaSuccess;
    if (!mark->capture && !stream->capture) return refuse_work(stream);
    if (!mark->capture) return spoil(stream->capture, cudaErrorStreamCaptureIsolation);
    struct capture *from = mark->stream->capture;
    if (!from || from->id != mark->capture) return cudaErrorCapturedEvent;
    if (is_legacy(stream)) return spoil(from, cudaErrorStreamCaptureImplicit);
    if (stream->capture && stream->capture != from) return spoil(from, cudaErrorStreamCaptureMerge);
    if (!stream->capture) stream->joined = stream->work;
    stream->capture = from;
    // An event older than one that was waited for before adds nothing.
    if (mark->stream != stream && mark->work > mark->stream->joined) mark->stream->joined = mark->work;
    return cudaSuccess;
}
