"""todo-compile: token downsampling for diffusion models as a compiler pass."""
