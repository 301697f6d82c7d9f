"""The configuration, from a file to immutable values.

``model`` (the values), ``keys`` (every key in one table), ``source`` with ``yamlhints`` (bytes to a tree with
places), ``load`` (tree to values, parse errors), ``check`` (semantic errors), ``diff`` (the changes of a reload),
``child`` with ``rows`` (loading in another process), ``docs`` (the tables of the guide and the JSON schema).
"""
