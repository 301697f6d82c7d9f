"""``maglevc``: the command line. It knows the daemon by its gRPC API only."""
