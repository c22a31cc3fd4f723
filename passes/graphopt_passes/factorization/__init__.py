"""Replacing linear layers by sums and chains of thinner ones, chosen per layer under a budget."""
