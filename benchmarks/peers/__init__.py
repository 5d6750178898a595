"""Other engines behind one small interface; each runs in an environment of its own."""
