"""What every room stands on: time, states, errors, events, logs. Nothing here imports another room.

``clock`` (time that tests own), ``pace`` (long work in slices), ``states`` (states and codes, with the engine's
numbers), ``errors`` (what an operator can cause), ``events`` (the bus), ``logs`` (structured records), ``background``
(blocking work on a thread), ``listen`` (listening addresses), ``version``.
"""
