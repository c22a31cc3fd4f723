"""The rewrites that ship with graphopt: one pass, one file, found through the entry points `graphopt.passes`."""
