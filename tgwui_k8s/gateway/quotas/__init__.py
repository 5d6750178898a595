"""What each API key may use, and who counts it."""
