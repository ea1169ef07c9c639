"""Which sites are downsampled, and by how much: classes, factors, levels, cost."""
