"""The devices of this machine: what PyTorch, the driver and the environment say of them."""
