"""From states to weights: pure rules without sockets, clocks or an event loop."""
