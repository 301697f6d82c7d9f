"""Health checker and control plane for the Maglev load balancer in FD.io VPP."""
