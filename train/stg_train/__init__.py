"""Learn the energy of a short video by analysis by synthesis, in PyTorch."""
