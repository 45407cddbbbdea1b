"""Whole slides and large pictures: as a grid of squares, as patches cut from it, and which of these are any good."""
