"""The leaderboard: a static site made from stored results alone, readable from a disk without any network.

`found`, `entries`, `statistics`, `boards` and `duels` turn results into plain data, in this order; `repeat` names the
command that repeats a run. `svg` draws, `site` writes the pages, `serve` shows them on this machine.
"""
