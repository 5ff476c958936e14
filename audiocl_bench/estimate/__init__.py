"""What runs cost, before they start: time, memory, and how often every clip goes through the encoder.

work.py        accounts of work
phantom.py     a network's anatomy, and a phantom of it that computes nothing
hollow.py      operations on tensors counted, large ones not carried out
rehearsal.py   a method's own code on the real stream, with the phantom: its work, counted
rates.py       how fast a machine is: measured and kept, or read from a file
model.py       both together: `estimate(Request(...))`
tables.py      for the terminal
"""

from audiocl_bench.estimate.model import Estimate, Request, RunEstimate, Span, estimate
from audiocl_bench.estimate.rates import Rates
from audiocl_bench.estimate.rehearsal import Rehearsal, rehearse
from audiocl_bench.estimate.work import CannotCountError, Work

__all__ = [
    "CannotCountError",
    "Estimate",
    "Rates",
    "Rehearsal",
    "Request",
    "RunEstimate",
    "Span",
    "Work",
    "estimate",
    "rehearse",
]
