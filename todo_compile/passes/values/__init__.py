"""What numbers a tensor of the graph can hold: the proof that a mask hides no key."""
