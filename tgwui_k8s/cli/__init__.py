"""The command line `tgwui-k8s`: one file per command; each only parses, calls and prints.

Exit codes: 0 done, 2 usage, 3 could not load or bind, 1 anything else.
"""

from tgwui_k8s.cli.group import main

__all__ = ["main"]
