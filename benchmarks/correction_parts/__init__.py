"""Parts of `correction.py`."""
