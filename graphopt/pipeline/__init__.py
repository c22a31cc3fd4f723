"""Passes, their options and textual form, the registry, and the manager that runs them."""
