"""Runs made elsewhere: in worker processes of this machine, on a Ray cluster, or as Slurm jobs.

The unit of work is one run. `unit` describes it in plain values and makes it in whatever process it lands; `events` is
what such a process says meanwhile; `foreman` hands units to an engine (`local`, `ray`, `slurm`), gives lost ones out
again and keeps account; `table` shows all of them. The engines move units and events, and know nothing of learning.

Every engine writes into the same results directory, whose locks keep two processes off one run; a run that was lost
continues at its last checkpoint. The bits of a run on a CPU depend on its number of threads and on nothing else that an
engine decides.
"""

from __future__ import annotations

from typing import Literal

Name = Literal["local", "ray", "slurm"]
"""What `--executor` takes."""
