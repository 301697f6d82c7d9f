"""Bringing VPP to the desired state, and keeping it there: the tasks, and the one way from an event to a call.

``reconciler`` (events, the tasks, and calls from other rooms), ``batches`` (verdicts to VPP), ``timetable`` with
``fullsync`` (when a full sync is due, and the sync), ``programmer`` with ``executor`` (from names to acknowledged
calls), ``readback`` with ``verification`` and ``report`` (reading VPP), ``reloads`` (taking over a configuration),
``guard`` (a VPP that answers wrongly ends a piece of work, never a task), ``rooms`` (the state modules side by side,
with the lock and the signals of the tasks), ``counters``.
"""
