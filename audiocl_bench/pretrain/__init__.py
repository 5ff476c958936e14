"""Pre-training of the small EAT that ships with audiocl: freely licensed sound in, a backbone file out.

`recipe` reads what is asked for, `pack` holds the prepared clips, `trainer` trains, `export` writes what
`audiocl_bench.backbones.load` reads. Nothing here is needed to use the backbone.
"""
