"""PyTorch's own CUDA build on a machine without a GPU: its allocator runs, its kernels do nothing.

Stand-ins for CUDA's libraries count and map memory, and answer what PyTorch asks of a device. Every
request, segment and statistic is then PyTorch's own, and no number that a kernel computes is.

    make standin                                        # everything, in .standin
    python -m benchmarks.standin -m tritter_mem profile --config tiny --device cuda
"""
