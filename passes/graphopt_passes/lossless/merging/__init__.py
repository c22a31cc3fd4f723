"""How two nodes in a row become one, by family of operators: what `merge-consecutive` is made of."""
