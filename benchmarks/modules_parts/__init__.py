"""Parts of `benchmarks/modules.py`."""
