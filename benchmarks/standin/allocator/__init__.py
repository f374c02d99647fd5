"""PyTorch's own CUDA allocator and the simulated one, side by side on random operations."""
