"""Budgets and the accuracy gate."""
