"""Parts of `benchmarks/race.py`: workloads, runtimes, clock, heats, figures, peers, truth."""
