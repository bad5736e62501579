"""Chains that live on an NVIDIA GPU, through the driver alone: no PyTorch, no CuPy."""
