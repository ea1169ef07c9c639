"""What a pipeline calls its denoiser with, read off the pipeline itself.

    parts ──► stand-ins without weights ──► the pipeline's own __call__ ──► its first call of the
              (`modules`, `words`)          (`arguments`, `run`)            denoiser, recorded

The pipeline's code makes every tensor: latents, text states, positions, masks, guidance. Nothing is
known here about any single pipeline. `picture` finds out, by noise that says where it is, which
axes of the recorded tensors are the image's rows and columns; `call` makes example inputs of it.
"""
