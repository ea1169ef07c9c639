"""From a module to a graph: example inputs, wrappers around models, tracing, train and eval."""
