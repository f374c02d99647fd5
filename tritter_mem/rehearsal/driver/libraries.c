// Functions of CUDA's other libraries that have outputs: those that are written, so is each output.
//
// What these libraries compute, they compute on the device, and nothing is computed here. Functions
// that only do that, or only set something, are made by `build.py` and return success; all others
// that PyTorch may call are made there too, and fail with their name.
#include "device.h"

#include <stdlib.h>
#include <string.h>

// Each handle is another: PyTorch keeps a workspace for each handle and stream.
#define HANDLE(function) \
    int function(void **handle) { return *handle = calloc(1, 256), 0; }
#define RELEASE(function) \
    int function(void *handle) { return free(handle), 0; }

#ifdef LIBRARY_cublas
HANDLE(cublasCreate_v2)
RELEASE(cublasDestroy_v2)
static __thread int math_mode, pointer_mode;
int cublasGetMathMode(void *handle, int *mode) { return *mode = math_mode, 0; }
int cublasSetMathMode(void *handle, int mode) { return math_mode = mode, 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = pointer_mode, 0; }
int cublasSetPointerMode_v2(void *handle, int mode) { return pointer_mode = mode, 0; }

// A product of vectors may be written to the host, and whether a system was solved always is.
static int zero_result(void *result, size_t bytes) {
    if (address_device(result) < 0) memset(result, 0, bytes);
    return 0;
}
#define DOT(function, bytes)                                                                        \
    int function(void *handle, int64_t n, const void *x, int64_t x_step, const void *y,             \
                 int64_t y_step, void *result) {                                                    \
        return zero_result(result, bytes);                                                          \
    }
#define DOT_EX(function)                                                                            \
    int function(void *handle, int64_t n, const void *x, int x_type, int64_t x_step, const void *y, \
                 int y_type, int64_t y_step, void *result, int type, int computed_in) {             \
        return zero_result(result, type == 0 ? 4 : type == 1 || type == 4 ? 8 : type == 5 ? 16 : 2); \
    }
#define SOLVE(function)                                                                             \
    int function(void *handle, int how, int n, int sides, const void *a, int a_step,                \
                 const int *pivots, void *b, int b_step, int *info, int batch) {                    \
        return *info = 0, 0;                                                                        \
    }
DOT(cublasSdot_v2, 4)
DOT(cublasSdot_v2_64, 4)
DOT(cublasDdot_v2, 8)
DOT(cublasDdot_v2_64, 8)
DOT(cublasCdotu_v2, 8)
DOT(cublasCdotu_v2_64, 8)
DOT(cublasCdotc_v2, 8)
DOT(cublasCdotc_v2_64, 8)
DOT(cublasZdotu_v2, 16)
DOT(cublasZdotu_v2_64, 16)
DOT(cublasZdotc_v2, 16)
DOT(cublasZdotc_v2_64, 16)
DOT_EX(cublasDotEx)
DOT_EX(cublasDotEx_64)
DOT_EX(cublasDotcEx)
DOT_EX(cublasDotcEx_64)
SOLVE(cublasSgetrsBatched)
SOLVE(cublasDgetrsBatched)
SOLVE(cublasCgetrsBatched)
SOLVE(cublasZgetrsBatched)
int cublasGetVersion_v2(void *handle, int *version) { return *version = CUDA_MAJOR * 10000, 0; }
#endif

#ifdef LIBRARY_cublasLt
HANDLE(cublasLtCreate)
RELEASE(cublasLtDestroy)
size_t cublasLtGetVersion(void) { return CUDA_MAJOR * 10000; }
size_t cublasLtGetCudartVersion(void) { return CUDA_MAJOR * 1000; }
int cublasLtMatmulDescCreate(void **made, int compute, int scale) {
    return *made = calloc(1, 256), 0;
}
RELEASE(cublasLtMatmulDescDestroy)
int cublasLtMatrixLayoutCreate(void **made, int type, uint64_t rows, uint64_t columns, int64_t lead) {
    return *made = calloc(1, 256), 0;
}
RELEASE(cublasLtMatrixLayoutDestroy)
HANDLE(cublasLtMatmulPreferenceCreate)
RELEASE(cublasLtMatmulPreferenceDestroy)

// The first of the algorithms asked for is found: PyTorch fails where there is none, and gives each
// the workspace that it has set, whatever it needs.
struct heuristic { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d,
                                   void *preference, int asked, struct heuristic *results,
                                   int *found) {
    memset(results, 0, sizeof *results);
    return *found = 1, 0;
}
#endif

#ifdef LIBRARY_cudnn
HANDLE(cudnnCreate)
RELEASE(cudnnDestroy)
// Until a rehearsal says the version that is installed, too old for its attention: plans of that
// can't be answered here, and it is `inside/cudnn.py` that has kernels without plans.
static size_t version = 80900;
void tritter_standin_cudnn_version(size_t installed) { version = installed; }
size_t cudnnGetVersion(void) { return version; }
int cudnnGetProperty(int part, int *value) {  // 0: major, 1: minor, 2: patch
    static const size_t units[] = {10000, 100, 1};
    return *value = version / units[part] % 100, 0;
}
size_t cudnnGetCudartVersion(void) { return CUDA_MAJOR * 1000; }
const char *cudnnGetErrorString(int error) {
    return error ? "the stand-in for cuDNN does not have this function" : "success";
}
HANDLE(cudnnCreateTensorDescriptor)
HANDLE(cudnnCreateFilterDescriptor)
HANDLE(cudnnCreateConvolutionDescriptor)
HANDLE(cudnnCreateActivationDescriptor)
HANDLE(cudnnCreatePoolingDescriptor)
RELEASE(cudnnDestroyTensorDescriptor)
RELEASE(cudnnDestroyFilterDescriptor)
RELEASE(cudnnDestroyConvolutionDescriptor)
RELEASE(cudnnDestroyActivationDescriptor)

// Convolutions are taken to need no workspace: which algorithm a card takes is not known here. The
// record lists it under what is not counted.
struct algorithm { int number, status; float time; size_t memory; int determinism, math, reserved[3]; };
static int choose(const char *function, int *found, struct algorithm *results) {
    session_note_stub(function);
    *results = (struct algorithm){.number = 1};
    return *found = 1, 0;
}
int cudnnGetConvolutionForwardAlgorithm_v7(void *handle, void *x, void *w, void *convolution, void *y,
                                           int asked, int *found, struct algorithm *results) {
    return choose("workspace of cudnnConvolutionForward", found, results);
}
int cudnnGetConvolutionBackwardDataAlgorithm_v7(void *handle, void *w, void *dy, void *convolution,
                                                void *dx, int asked, int *found,
                                                struct algorithm *results) {
    return choose("workspace of cudnnConvolutionBackwardData", found, results);
}
int cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *handle, void *x, void *dy, void *convolution,
                                                  void *dw, int asked, int *found,
                                                  struct algorithm *results) {
    return choose("workspace of cudnnConvolutionBackwardFilter", found, results);
}
int cudnnFindConvolutionForwardAlgorithmEx(void *handle, void *x, void *x_data, void *w, void *w_data,
                                           void *convolution, void *y, void *y_data, int asked,
                                           int *found, struct algorithm *results, void *space,
                                           size_t bytes) {
    return choose("workspace of cudnnConvolutionForward", found, results);
}
int cudnnFindConvolutionBackwardDataAlgorithmEx(void *handle, void *w, void *w_data, void *dy,
                                                void *dy_data, void *convolution, void *dx,
                                                void *dx_data, int asked, int *found,
                                                struct algorithm *results, void *space,
                                                size_t bytes) {
    return choose("workspace of cudnnConvolutionBackwardData", found, results);
}
int cudnnFindConvolutionBackwardFilterAlgorithmEx(void *handle, void *x, void *x_data, void *dy,
                                                  void *dy_data, void *convolution, void *dw,
                                                  void *dw_data, int asked, int *found,
                                                  struct algorithm *results, void *space,
                                                  size_t bytes) {
    return choose("workspace of cudnnConvolutionBackwardFilter", found, results);
}
static int no_workspace(const char *function, size_t *bytes) {
    return session_note_stub(function), *bytes = 0, 0;
}
int cudnnGetConvolutionForwardWorkspaceSize(void *handle, void *x, void *w, void *convolution, void *y,
                                            int number, size_t *bytes) {
    return no_workspace("workspace of cudnnConvolutionForward", bytes);
}
int cudnnGetConvolutionBackwardDataWorkspaceSize(void *handle, void *w, void *dy, void *convolution,
                                                 void *dx, int number, size_t *bytes) {
    return no_workspace("workspace of cudnnConvolutionBackwardData", bytes);
}
int cudnnGetConvolutionBackwardFilterWorkspaceSize(void *handle, void *x, void *dy, void *convolution,
                                                   void *dw, int number, size_t *bytes) {
    return no_workspace("workspace of cudnnConvolutionBackwardFilter", bytes);
}
int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    void *handle, int mode, int operations, void *x, void *z, void *y, void *scale, void *activation,
    size_t *bytes) {
    return no_workspace("workspace of cudnnBatchNormalizationForwardTrainingEx", bytes);
}
int cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    void *handle, int mode, int operations, void *x, void *y, void *dy, void *dz, void *dx,
    void *scale, void *activation, size_t *bytes) {
    return no_workspace("workspace of cudnnBatchNormalizationBackwardEx", bytes);
}
int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *handle, int mode, int operations,
                                                         void *activation, void *x, size_t *bytes) {
    return no_workspace("reserve of cudnnBatchNormalizationForwardTrainingEx", bytes);
}
#endif

#ifdef LIBRARY_cusparse
HANDLE(cusparseCreate)
RELEASE(cusparseDestroy)
const char *cusparseGetErrorString(int error) {
    return error ? "the stand-in for cuSPARSE does not have this function" : "success";
}
#endif

#ifdef LIBRARY_cusolver
HANDLE(cusolverDnCreate)
RELEASE(cusolverDnDestroy)
#endif


#ifdef LIBRARY_nvrtc
// Sources compile to nothing, which the driver's stand-in loads.
int nvrtcVersion(int *major, int *minor) { return *major = CUDA_MAJOR, *minor = 0, 0; }
const char *nvrtcGetErrorString(int error) { return error ? "stand-in error" : "success"; }
int nvrtcCreateProgram(void **program, const char *source, const char *name, int headers,
                       const char *const *texts, const char *const *names) {
    return *program = calloc(1, 8), 0;
}
int nvrtcDestroyProgram(void **program) { return free(*program), *program = NULL, 0; }
static int one_byte(size_t *bytes) { return *bytes = 1, 0; }
int nvrtcGetPTXSize(void *program, size_t *bytes) { return one_byte(bytes); }
int nvrtcGetCUBINSize(void *program, size_t *bytes) { return one_byte(bytes); }
int nvrtcGetProgramLogSize(void *program, size_t *bytes) { return one_byte(bytes); }
int nvrtcGetPTX(void *program, char *text) { return *text = 0, 0; }
int nvrtcGetCUBIN(void *program, char *code) { return *code = 0, 0; }
int nvrtcGetProgramLog(void *program, char *log) { return *log = 0, 0; }
int nvrtcGetLoweredName(void *program, const char *expression, const char **name) {
    return *name = "kernel", 0;
}
#endif

#ifdef LIBRARY_cupti
// PyTorch's profiler finds that nothing was recorded.
int cuptiGetVersion(uint32_t *version) { return *version = CUDA_MAJOR * 10000, 0; }
int cuptiGetResultString(int result, const char **text) {
    return *text = result ? "stand-in error" : "success", 0;
}
int cuptiSubscribe(void **subscriber, void *callback, void *data) {
    return *subscriber = (void *)0x7000, 0;
}
int cuptiActivityGetNextRecord(uint8_t *buffer, size_t bytes, void **record) {
    return *record = NULL, 12;  // CUPTI_ERROR_MAX_LIMIT_REACHED: there are no more
}
int cuptiActivityGetNumDroppedRecords(void *context, uint32_t stream, size_t *dropped) {
    return *dropped = 0, 0;
}
int cuptiActivityPopExternalCorrelationId(int kind, uint64_t *last) { return *last = 0, 0; }
#endif
