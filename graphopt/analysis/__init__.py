"""What follows from the graph: shapes, meaning checks, liveness."""
