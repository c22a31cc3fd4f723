"""When a node changes nothing, by family of operators: what `eliminate-no-ops` is made of."""
