"""Changes to the graph: pooled keys and values, hoisting, merging, masses, lowering."""
