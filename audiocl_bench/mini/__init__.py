"""Miniatures of the six corpora, synthesised on first use, to try everything on a machine that has none."""
