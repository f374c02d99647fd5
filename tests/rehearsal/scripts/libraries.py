"""What the stand-ins for CUDA's other libraries do: convolutions run, transforms say their name."""

import resource
import tempfile

import torch

layer = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).cuda()
layer(torch.randn(2, 3, 32, 32, device="cuda")).sum().backward()
graph, static = torch.cuda.CUDAGraph(), torch.randn(512, 512, device="cuda")
with torch.cuda.graph(graph):
    product = static @ static
graph.replay()
assert product.shape == (512, 512)
# A whole step, its optimizer's too, is captured and replayed: at each replay it takes nothing.
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(4)]).cuda()
optimizer = torch.optim.AdamW(model.parameters(), capturable=True)


def step():
    optimizer.zero_grad()
    model(static).pow(2).mean().backward()
    optimizer.step()


side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
with torch.cuda.stream(side):
    for _ in range(3):
        step()
torch.cuda.current_stream().wait_stream(side)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    step()
taken = torch.cuda.memory_allocated()
for _ in range(3):
    graph.replay()
assert torch.cuda.memory_allocated() == taken
start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
start.record()
graph.replay()
end.record()
end.synchronize()
assert start.elapsed_time(end) == 1.0
# A checkpoint larger than the host: it is mapped, and its values are not read.
with tempfile.NamedTemporaryFile() as checkpoint:
    size, count = 2 << 30, 70
    checkpoint.truncate(count * size)
    mapped = torch.UntypedStorage.from_file(checkpoint.name, False, count * size)
    for at in range(count):
        weight = torch.empty(0, dtype=torch.bfloat16)
        weight.set_(mapped, at * size // 2, (size // 2,))
        assert weight.cuda().numel() == size // 2
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
assert held < 2048, held
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
