// The libraries' functions that answer with more than success; all others return 0 and do nothing.
#include <stddef.h>
#include <stdlib.h>

// Each handle is another: PyTorch keeps a workspace for each handle and stream.
#define HANDLE(function) \
    int function(void **handle) { return *handle = malloc(1), 0; }

HANDLE(cublasCreate_v2)
HANDLE(cublasLtCreate)
HANDLE(cudnnCreate)
HANDLE(cusparseCreate)
HANDLE(cusolverDnCreate)
// Too old for its attention, whose plans can't be answered here: PyTorch takes flash attention.
size_t cudnnGetVersion(void) { return 80900; }
size_t cublasLtGetVersion(void) { return 130000; }
size_t cublasLtGetCudartVersion(void) { return 13000; }

// The first of the algorithms asked for is found: PyTorch fails where there is none.
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d,
                                   void *preference, int asked, void *results, int *found) {
    return *found = 1, 0;
}
