"""Nodes in another axis order, and where that saves Transposes: what `move-transposes` is made of."""
