"""The gRPC API: the server, its calls, and the one place where the model meets the wire (``convert``)."""
