"""The lab: real servers, the stand-in for VPP and the installed programs on one machine.

``python -m tests.lab`` (``make run``) is a tour for people; the Robot suite drives the same parts.
"""
