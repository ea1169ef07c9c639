"""Parts of `benchmarks/passes.py`."""
