"""Channel pruning: which units of which groups go, and how the layers around them make up for it."""
