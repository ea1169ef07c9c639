"""Parts of `benchmarks/soundness.py`: random modules around attention, and who is right."""
