"""Prometheus metrics: families of the checker, the engine and the dataplane, and the server that sends them."""
