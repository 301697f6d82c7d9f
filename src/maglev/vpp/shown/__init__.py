"""What the API and the metrics are shown of the dataplane. It changes nothing but what an operator asks to sync.

``dataplane`` (the face), ``comparison`` (VPP beside what is wanted), ``forecast`` and ``whatif`` (dry runs), ``stats``
(VPP's counters), ``reconciler_api`` (what it asks of the reconciler).
"""
