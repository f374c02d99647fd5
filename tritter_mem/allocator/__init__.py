"""PyTorch's CUDA caching allocator: simulated, and recorded snapshots replayed through it."""
