"""What the dataplane remembers between two plans. Each module owns one kind of state; only ``sync`` changes them.

``mirror`` with ``reader`` and ``drift`` (VPP as last read), ``agenda`` (what waits), ``announced`` with
``configured`` (which configuration counts), ``recreations``, ``ownership``, ``debts`` (flushes that are owed),
``adoption`` with ``warmup`` (taking over a running VPP), ``store`` and ``keeping`` (what survives a restart).
"""
