"""Submissions: runs packed into one file, and everything in them checked before anybody believes it.

    pack.choose, pack.write         chosen runs into one zip: a manifest and the Parquet files as they are
    collection.verify_pack          is a pack what it says, do its numbers follow from its predictions?
    collection.verify_collection    the same for a folder of runs/, sessions/ and predictions/
    collection.add                  a pack that passed becomes a collection of `results/`
    difference.difference           which rows of the published numbers a change touches, and by how many points

Reading executes nothing: JSON and Parquet only, sizes checked first, the Parquet reader in a process of its own.
"""

from __future__ import annotations
