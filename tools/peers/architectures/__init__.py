"""Published architectures in plain torch, written out so that no model library has to be installed.

Each is what its paper describes, or a smaller relative with the same kinds of blocks: what a graph compiler meets is
the structure. `peers.networks` lists them all.
"""
