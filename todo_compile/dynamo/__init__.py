"""The passes as a `torch.compile` backend, and `accelerate` for diffusers' pipelines."""
