"""The soak: the daemon at scale among failures, operators, reloads and VPPs that come and go; then all must agree."""
