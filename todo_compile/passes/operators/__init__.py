"""What every operator does to the axes of a tensor: one table, read downwards and upwards."""
