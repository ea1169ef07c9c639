"""Where attention is: every way of spelling it, its masks and casts."""
