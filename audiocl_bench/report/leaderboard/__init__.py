"""The leaderboard: a static site made from stored results alone, readable from a disk without any network.

`model` turns results into plain data, `svg` draws, `site` writes the pages, `serve` shows them on this machine.
"""
