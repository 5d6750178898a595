"""Structured edits of a text-generation-webui checkout: find seams, check, edit, take back.

`seams` and `edits` are the words that the codemods in `patches/` are written in; `series` reads
those; `plan` decides, `checkout` and `store` know the folder, `operations` are the commands.
LibCST (the extra `upstream`) is needed to read code, and nothing else is.
"""
