"""Pruners that the bench compares with, each a small program for an environment of its own."""
