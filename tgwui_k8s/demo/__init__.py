"""The built-in demo model, the script that trains it, and makers of tiny test checkpoints."""
