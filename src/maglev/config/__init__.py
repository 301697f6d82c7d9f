"""Configuration: ``model`` (what it means), ``load`` (file to model, parse errors), ``check`` (semantic errors)."""
