"""Operators of cuDNN, cuSOLVER and cuFFT: which run, and which fail with a function's name."""

import torch

calls = {
    "conv2d": lambda: torch.nn.Conv2d(3, 64, 3).cuda()(torch.randn(8, 3, 224, 224, device="cuda")),
    "eigh": lambda: torch.linalg.eigh(torch.randn(1024, 1024, device="cuda")),
    "fft": lambda: torch.fft.fft(torch.randn(4096, 4096, device="cuda")),
    "lstm": lambda: torch.nn.LSTM(512, 512).cuda()(torch.randn(64, 32, 512, device="cuda")),
}
for name, call in calls.items():
    try:
        call()
        print(name, "runs", flush=True)
    except RuntimeError as error:
        print(name, "fails:", str(error).splitlines()[0], flush=True)
