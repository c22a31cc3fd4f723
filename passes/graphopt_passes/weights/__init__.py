"""What the passes on single weights share: the problem that a layer's weights solve, the walk, and how they are stored."""
