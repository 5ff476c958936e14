"""Getting corpora: download, unpack, add a copy one has, verify."""
