"""The user's own command over stand-ins for CUDA's libraries: PyTorch's allocator without a GPU.

`driver/` has the stand-ins in C, `build` makes them for a torch, `launch` starts a command over
them, `inside/` is what runs in the command's processes, `collect` reads what they left, and
`rehearse` puts them together. What is rehearsed is never called measured.
"""
