"""The gRPC API.

``server`` with ``listeners`` and ``tls`` (how callers come in), ``access`` and ``gate`` (callers, roles, and the
checks before every call), ``service`` (the calls) and ``services`` (what they need of the daemon), ``convert``
(values to messages, the only place that does it), ``status`` (errors), ``watch`` with ``filters`` (``WatchEvents``),
``paging``, ``turns`` and ``readings`` (costly work, one at a time).
"""
