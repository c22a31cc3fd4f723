"""Operators that exporters and older opsets spell out, recognized: one file per family."""
