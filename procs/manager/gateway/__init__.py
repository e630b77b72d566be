"""The door of the manager: TLS in front, authorization on every call, a grpcio server behind (DESIGN §6)."""
