"""The foundation of all rooms: time, states, errors, events, logs. Nothing here imports another room.

``clock`` (time that tests own), ``pace`` (long work in slices), ``states`` (states and codes, with the engine's
numbers), ``errors`` (mistakes of operators and callers), ``limits`` (of their requests), ``events`` (the bus),
``logs`` (structured records), ``background`` (blocking work on a thread), ``listen`` (listening addresses),
``stdio`` (standard streams, and lost output), ``version``.
"""
