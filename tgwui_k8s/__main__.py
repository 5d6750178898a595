"""`python -m tgwui_k8s` is the console script `tgwui-k8s`."""

from tgwui_k8s.cli import main

if __name__ == "__main__":
    main(prog_name="tgwui-k8s")
