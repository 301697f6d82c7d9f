"""The language that the configuration is described in: types of values, sections of keys, problems with their places.

``types`` (one value: read, write, describe), ``section`` (mappings with known keys), ``problems`` (reports and their
line numbers), ``durations`` (Go's form of a length of time), ``plain`` (dataclasses as JSON can hold them).

Nothing here knows a key. The tables are in ``maglev.config.keys`` and, for the parameters of a probe kind, in
``maglev.kinds``.
"""
