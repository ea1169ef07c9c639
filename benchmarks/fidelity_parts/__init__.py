"""Parts of `benchmarks/fidelity.py`: settings, sampling, peers, measures, statistics, output."""
