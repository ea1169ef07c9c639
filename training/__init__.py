"""Training of the model that ships as ``--model demo``: from npm's emoji pictures to weights.

``python -m training`` does everything; each step is a module of its own: `data` (pictures and
prompts), `latents` (the fixed linear code), `text` (tokenizer and text encoder), `denoiser` (UNet),
`autoencoder`, `export` and `evaluate`. Working files live below ``build/training``.
"""
