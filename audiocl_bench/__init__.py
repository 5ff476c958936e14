"""Core of audiocl: streams in, methods learn session by session, every prediction is written down.

The core knows no method by name; methods live in `audiocl_methods` (folder `methods/`) and in outside plugins.
"""

__version__ = "0.1.0"
