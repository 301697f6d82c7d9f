"""The values that the daemon shows: immutable, defined once, shared by API, metrics and tests.

``backends`` is the checker's side: a backend as it is, and what operators have set. ``effects`` is what a change does
to frontends. ``dataplane`` is VPP's side: the connection, what VPP holds beside what is wanted, packet counters.
``plans`` is what a sync would do or has done.

A view is a snapshot. The part that owns the state makes it when it is asked; it never changes afterwards, so it may
be held across an ``await`` or handed to another task. Views know ``maglev.base`` only: the checker and the dataplane
make them without knowing of each other, and the parts above read them without knowing who made them.

Not everything that is shown is defined here. Events (``maglev.base.events``), weights (``maglev.judgement.weights``)
and problems and changes of a configuration (``maglev.config``) are immutable already, and are shown as they are.

Times are integers in nanoseconds. A name that ends in ``_at_ns`` or ``since_ns`` or ``until_ns`` is a moment of the
wall clock since the epoch; other names that end in ``_ns`` are spans.
"""
