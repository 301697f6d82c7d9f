"""The house rules: limits on the size and shape of the code that no linter here checks on its own.

``python -m tests.house`` checks the tree; ``make lint`` and ``make check`` run it. The rules, with their reasons:

- A class has at most 25 instance attributes. State with more fields has more than one owner: split it.
- A function has at most 60 lines without its docstring, in Python and in Cython. A longer one says why in a comment at
  its ``def``: ``# long: one row for each metric family``. The comment goes when the function becomes short.
- Imports form no circle, neither between modules nor between packages. Imports within functions and for type checking
  count: such a circle works at run time, but no module of it can be read, tested or moved alone. The import contracts
  hold this between siblings; the check here holds it between a package and its modules.

The limit of a function's cyclomatic complexity is ruff's: C901, with ``max-complexity`` in pyproject.toml.

``rules`` holds the checks, ``pending`` the known violations.
"""
