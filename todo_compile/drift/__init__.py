"""How far a plan moves a model's output: probes, replaying part of a graph, measuring."""
