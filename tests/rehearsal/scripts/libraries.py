"""What the stand-ins for CUDA's other libraries do: convolutions run, transforms say their name."""

import torch

layer = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).cuda()
layer(torch.randn(2, 3, 32, 32, device="cuda")).sum().backward()
graph, static = torch.cuda.CUDAGraph(), torch.randn(512, 512, device="cuda")
with torch.cuda.graph(graph):
    product = static @ static
graph.replay()
assert product.shape == (512, 512)
try:
    torch.fft.fft(torch.randn(1024, 1024, device="cuda"))
except RuntimeError as error:
    print("fft:", error)
assert torch.cuda.get_device_name() == "NVIDIA GeForce RTX 4090"
assert torch.cuda.get_device_capability() == (8, 9)
assert torch.cuda.device_count() == 2
assert torch.cuda.can_device_access_peer(0, 1)
pinned = torch.ones(4).pin_memory()
assert pinned.is_pinned()
assert pinned.to("cuda:1", non_blocking=True).tolist() == [1, 1, 1, 1]
assert torch.zeros(3, device="cuda:1").device.index == 1
