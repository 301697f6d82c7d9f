"""Bringing VPP to the desired state, and keeping it there: the tasks, and the one way from an event to a call.

``reconciler`` (events, and the calls that others make), ``batches`` and ``fullsync`` (the tasks that program),
``programmer`` with ``executor`` (from names to acknowledged calls), ``readback`` with ``report`` (reading VPP),
``reloads`` (taking over a configuration), ``rooms`` (the state modules side by side).
"""
