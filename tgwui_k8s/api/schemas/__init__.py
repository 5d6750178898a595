"""Wire types: what clients may send, and what they get back; one file per endpoint family."""
