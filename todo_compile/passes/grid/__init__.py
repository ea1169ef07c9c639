"""Which axes of a tensor are the image's rows and columns; rules by kind of operator."""
