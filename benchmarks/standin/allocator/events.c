// Events that are done when the test says so: work on a stream ends with stream_finish(stream).
//
// Loaded before the stand-in for libcudart, whose events are done at once.
#define _GNU_SOURCE
#include <stdlib.h>

#define STREAMS 64

struct event { void *stream; unsigned long number; };
static struct { void *stream; unsigned long recorded, finished; } streams[STREAMS];

static int place(void *stream) {
    int at = 0;
    while (at < STREAMS - 1 && streams[at].stream != stream && streams[at].recorded) at++;
    streams[at].stream = stream;
    return at;
}

void stream_finish(void *stream) {
    int at = place(stream);
    streams[at].finished = streams[at].recorded;
}

int cudaEventCreateWithFlags(void **event, unsigned flags) {
    return *event = calloc(1, sizeof(struct event)), 0;
}
int cudaEventCreate(void **event) { return cudaEventCreateWithFlags(event, 0); }
int cudaEventDestroy(void *event) { return free(event), 0; }
int cudaEventRecord(void *event, void *stream) {
    *(struct event *)event = (struct event){stream, ++streams[place(stream)].recorded};
    return 0;
}
int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}
int cudaEventQuery(void *event) {
    const struct event *asked = event;
    return asked->number <= streams[place(asked->stream)].finished ? 0 : 600;  // not ready
}
int cudaEventSynchronize(void *event) {
    const struct event *asked = event;
    int at = place(asked->stream);
    if (streams[at].finished < asked->number) streams[at].finished = asked->number;
    return 0;
}
