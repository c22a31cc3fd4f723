"""Exact rewrites: the result computes what the original computed."""
