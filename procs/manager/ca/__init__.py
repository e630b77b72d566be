"""The certificate authority: hands out the root, takes requests, signs them (reference node-and-ca §5)."""
